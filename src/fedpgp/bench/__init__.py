"""`fedpgp bench`: the library against what public code does, on the same work, in one process."""
