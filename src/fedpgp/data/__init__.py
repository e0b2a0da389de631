"""Images become a task: sources, partitions, protocols, and cached features.

It may import the backbone and what is below it. Start with `sources`, then `tasks`.
"""
