"""Studies vary something: sweeps, ablations, the experiments of the paper, and the search for settings.

It may import runs and all that is below them. Start with `study`.
"""
