"""Runs of one method with one seed, comparisons of several runs, resuming them, and joining new clients.

This package may import results, the federation and all packages below them. Start with `run`.
"""
