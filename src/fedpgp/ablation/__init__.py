"""Ablations: one thing of a method varied at a time, the rest as its config has it."""

from fedpgp.ablation.run import Ablation, ablate, load_ablation, resume_ablation

__all__ = ["Ablation", "ablate", "load_ablation", "resume_ablation"]
