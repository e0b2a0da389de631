"""From trained prompts to accuracies: inference, the evaluator, metrics and the paired bootstrap.

It may import the backbone, data, methods and what is below them. Start with `evaluator`.
"""
