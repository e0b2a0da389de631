"""Worker processes, seeded generators and atomic files.

It may import `fedpgp.errors` alone. Start with `randomness`: every random draw of a run is a function of its arguments.
"""
