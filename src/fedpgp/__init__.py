"""Federated prompt learning on CLIP: FedPGP (Cui et al., ICML 2024) and the methods it is compared with."""

__version__ = "0.1.0"
