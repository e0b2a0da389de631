"""Tables, figures and pages of results.

It may import studies, runs, results and what is below them, and it computes nothing that results do not say. Start with
`comparison`, then `page`.
"""
