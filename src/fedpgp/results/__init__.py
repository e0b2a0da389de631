"""Results of runs: Run and Comparison, the run directory, the summary of a run, and its provenance.

This package may import the config and all packages below it, but not runs or reports. Start with `run`.
"""
