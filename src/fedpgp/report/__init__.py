"""Tables, figures and pages of results.

This package may import `studies`, `runs`, `results` and the packages below them. It only shows what the results have.
Start with `comparison`, then `page`.
"""
