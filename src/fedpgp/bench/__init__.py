"""Benchmark of `fedpgp bench`: the library and public code do the same work in one process.

This package may import every package, and no package imports it. Start with `suite`.
"""
