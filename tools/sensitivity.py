"""Measure how much the results of the embedded FedPGP change with small perturbations of float32.

Compare the effect of less precise arithmetic with these changes. The program takes six minutes on two cores:

    python tools/sensitivity.py
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any
from unittest.mock import patch

import fedpgp
import torch
from fedpgp.backbone.text import TextEncoder
from fedpgp.methods import FedPGP
from torch import Tensor

SEEDS = 3
NAMES = ("local", "base", "novel", "hm", "cm")


def rounded_start() -> AbstractContextManager[Any]:
    """Round the initial prompts to bfloat16; all further arithmetic is float32."""

    def rounding(first: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        return lambda *of: {name: tensor.bfloat16().float() for name, tensor in first(*of).items()}

    return patch.multiple(FedPGP, init_shared=rounding(FedPGP.init_shared), init_private=rounding(FedPGP.init_private))


def noisy_gradients() -> AbstractContextManager[Any]:
    """Multiply every entry of the gradient of a context by 1 + N(0, 0.01²)."""
    rng, call = torch.Generator().manual_seed(1), TextEncoder.__call__

    def noisy(gradient: Tensor) -> Tensor:
        return gradient * (1 + 0.01 * torch.randn(gradient.shape, generator=rng))

    def called(text: TextEncoder, contexts: Tensor, *rest: Any) -> Tensor:
        if contexts.requires_grad:
            contexts = contexts.view_as(contexts)
            contexts.register_hook(noisy)
        return call(text, contexts, *rest)

    return patch.object(TextEncoder, "__call__", called)


def main() -> None:
    perturbations = {"float32": nullcontext, "first prompts rounded": rounded_start, "noisy gradients": noisy_gradients}
    for name, perturbed in perturbations.items():
        with perturbed():  # in this process, because the perturbation is not in other processes
            finals = [fedpgp.run("fedpgp", seed).results["final"] for seed in range(SEEDS)]
        print(name, {key: round(fmean(final[key] for final in finals), 1) for key in NAMES}, flush=True)


if __name__ == "__main__":
    main()
