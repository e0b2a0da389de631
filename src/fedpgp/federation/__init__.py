"""The rounds of a federation: local training, aggregation, privacy, evaluation, and the state on disk.

This package may import evaluation and the packages below it. It does not know any particular method. Start with
`rounds`.
"""
