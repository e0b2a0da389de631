"""Use a finished run: classify images with it, and export its model.

This package may import runs and all packages below. Start with `classifier`.
"""
