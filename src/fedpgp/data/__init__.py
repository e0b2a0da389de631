"""Build a task from images: sources, partitions, protocols and cached features.

This package may import the backbone and the packages below it. Start with `sources`, then `tasks`.
"""
