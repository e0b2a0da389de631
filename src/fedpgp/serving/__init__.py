"""What people do with a finished run: classify images with it, and hand it on.

It may import runs and what is below them. Start with `classifier`.
"""
