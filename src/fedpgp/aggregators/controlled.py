"""Aggregators that correct the clients' gradients, to reduce the drift that unequal data cause."""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators.base import Aggregator, Download, Server, Tensors, Upload, mean, zeros
from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Scaffold(Aggregator):
    """Control variates: clients follow g − c_i + c (Karimireddy et al. 2020, algorithm 1).

    A client's next c_i is the mean of its gradients before correction. With plain SGD, this equals the paper's option
    II, c_i − c + (x − y_i) / (K η). With momentum, which the paper does not have, this quotient would be too large.
    """

    name = "scaffold"
    source = "Karimireddy et al. 2020, ICML, arXiv 1910.06378, algorithm 1"
    controls = True

    server_learning_rate: float = Field(
        default=1.0, gt=0, le=1e3, description="η_g, learning rate of the server (paper, section 7)"
    )

    def begin(self, shared: Tensors, clients: int) -> Server:
        return Server(shared, {**zeros(shared, "c/"), "clients": torch.tensor(clients)})

    def download(self, server: Server, client: int) -> Download:
        return Download(server.shared, {name: server.memory[f"c/{name}"] for name in server.shared})

    def begin_client(self, shared: Tensors) -> Tensors:
        return zeros(shared)

    def correct(self, name: str, gradient: Tensor, value: Tensor, download: Download, own: Tensors) -> Tensor:
        return gradient - own[name] + download.control[name]

    def finish(self, download: Download, trained: Tensors, gradient: Tensors, own: Tensors) -> tuple[Tensors, Tensors]:
        return gradient, {name: gradient[name] - own[name] for name in own}

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        averaged, moved = mean([upload.shared for upload in uploads]), mean([upload.control for upload in uploads])
        share = len(uploads) / server.memory["clients"].item()
        shared = {
            name: value + self.server_learning_rate * (averaged[name] - value) for name, value in server.shared.items()
        }
        memory = {f"c/{name}": server.memory[f"c/{name}"] + share * moved[name] for name in shared}
        return Server(shared, {**server.memory, **memory})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedDyn(Aggregator):
    """A dynamic regularizer: clients follow g − h_i + α (θ − θ_G) (Acar et al. 2021, algorithm 1).

    The server adds −h / α to its mean.
    """

    name = "feddyn"
    source = "Acar et al. 2021, ICLR, arXiv 2111.04263, algorithm 1"
    controls = True

    alpha: float = Field(
        default=0.01, gt=0, le=1e3, description="α, weight of the dynamic regularizer (paper, table 3)"
    )

    def begin(self, shared: Tensors, clients: int) -> Server:
        return Server(shared, {**zeros(shared, "h/"), "clients": torch.tensor(clients)})

    def begin_client(self, shared: Tensors) -> Tensors:
        return zeros(shared)

    def correct(self, name: str, gradient: Tensor, value: Tensor, download: Download, own: Tensors) -> Tensor:
        return gradient - own[name] + self.alpha * (value - download.shared[name])

    def finish(self, download: Download, trained: Tensors, gradient: Tensors, own: Tensors) -> tuple[Tensors, Tensors]:
        return {name: own[name] - self.alpha * (trained[name] - download.shared[name]) for name in own}, {}

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        averaged = mean([upload.shared for upload in uploads])
        share = len(uploads) / server.memory["clients"].item()
        h = {
            name: server.memory[f"h/{name}"] - self.alpha * share * (averaged[name] - value)
            for name, value in server.shared.items()
        }
        shared = {name: value - h[name] / self.alpha for name, value in averaged.items()}
        return Server(shared, {**server.memory, **{f"h/{name}": value for name, value in h.items()}})
