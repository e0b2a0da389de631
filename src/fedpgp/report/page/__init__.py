"""Pages: one self-contained HTML file about the results of some runs.

Start with `write` for a report, and with `brief` for the page of a comparison.
"""
