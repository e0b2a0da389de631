"""From trained prompts to accuracies: inference, the evaluator, metrics and the paired bootstrap.

This package may import the backbone, data, methods and the packages below them. Start with `evaluator`.
"""
