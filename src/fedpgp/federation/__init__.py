"""What happens in a round: local training, aggregation, privacy, evaluation, and the state on disk.

It may import evaluation and what is below it, and it knows no particular method. Start with `rounds`.
"""
