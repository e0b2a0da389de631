"""A federation on Flower: messages, validation of updates, privacy, secure aggregation, simulation and deployment.

It may import runs and all that is below them. Start with `nodes`.
"""
