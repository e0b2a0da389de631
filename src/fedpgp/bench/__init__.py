"""`fedpgp bench`: the library against what public code does, on the same work, in one process.

It may import every package, and no package imports it. Start with `suite`.
"""
