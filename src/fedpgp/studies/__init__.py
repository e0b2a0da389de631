"""Studies: sweeps, ablations, the experiments of the paper, and the search for hyperparameters.

This package may import `runs` and the packages below it. Start with `study`.
"""
