"""What a run leaves behind: Run and Comparison, the run directory, the summary of a run, and its provenance.

It may import the config and all that is below it, and neither runs nor reports. Start with `run`.
"""
