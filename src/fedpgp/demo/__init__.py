"""A small federation to watch in a browser, on the embedded data: `fedpgp demo`.

It may import every package, and no package imports it. Start with `stage`.
"""
