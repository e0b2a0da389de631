"""Runs: one method with one seed, and comparisons of several; begun, resumed, and joined by new clients.

It may import results, the federation and all that is below them. Start with `run`.
"""
