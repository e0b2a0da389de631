"""A small federation on the embedded data that a user can watch in a browser: `fedpgp demo`.

This package may import every package, and no package imports it. Start with `stage`.
"""
