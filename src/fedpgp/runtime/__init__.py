"""Worker processes, seeded generators and atomic files.

This package may import `fedpgp.errors` only. Start with `randomness`: every random draw of a run is a function of its
arguments.
"""
