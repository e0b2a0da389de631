"""Self-attention of packed sequences that share a prefix, and of complete sequences.

Letters: K prompts, N blocks, B rows of a block, P rows of the shared prefix, R query rows of a block, H heads, d width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend(query: Tensor | None, rows: Tensor, prefix: int, mask: Tensor | None, heads: int) -> Tensor:
    """Compute softmax attention of each block's queries to the shared prefix and to the rows of the same block.

    Gradients flow to `query` and `rows`.

    Parameters
    ----------
    query
        [K, N, R, d], already scaled. None if every row is a query: then R = B, and `rows` also contains the queries.
    rows
        [K, N, B, 2d], keys followed by values, or [K, N, B, 3d], with the queries in front.
    prefix
        P; every block sees the first P rows of the first block.
    mask
        [N, R, P + B], 0 where a query sees a row and −∞ elsewhere; None if each query sees all rows.
    heads
        H.

    Returns
    -------
    Tensor
        [K, N, R, d].
    """
    return _Attention.apply(query, rows, prefix, mask, heads)


class _Attention(torch.autograd.Function):
    """Plain batched products around a softmax, with a hand-written backward pass.

    PyTorch's fused CPU attention is several times slower in the backward pass for these short sequences. The other
    implementations in PyTorch cannot share a prefix without copying it for every class.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor | None, rows: Tensor, prefix: int, mask: Tensor | None, heads: int) -> Tensor:
        K, N, B, width = rows.shape
        P, w = prefix, width // ((2 if query is not None else 3) * heads)  # w: width of a head
        parts = rows.reshape(K, N, B, -1, heads, w).permute(3, 0, 4, 1, 2, 5)  # [2 or 3, K, H, N, B, w]
        if query is None:
            q = parts[0].reshape(K * heads * N, B, w)
        else:
            q = query.reshape(K, N, -1, heads, w).permute(0, 3, 1, 2, 4).reshape(K * heads * N, -1, w)
        key_value = rows.new_empty(2, K, heads, N, P + B, w)
        key_value[..., :P, :] = parts[-2:, :, :, :1, :P]
        key_value[..., P:, :] = parts[-2:]
        k, v = key_value.view(2, K * heads * N, P + B, w)
        scores = q @ k.mT
        if mask is not None:
            scores.view(K * heads, N, -1, P + B).add_(mask)
        weights = torch.softmax(scores, dim=-1)
        out = weights @ v
        ctx.save_for_backward(q, k, v, weights)
        ctx.sizes = K, N, B, P, heads, w
        return out.view(K, heads, N, -1, w).permute(0, 2, 3, 1, 4).reshape(K, N, -1, heads * w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        K, N, B, P, heads, w = ctx.sizes
        separate = ctx.needs_input_grad[0]
        d_out = gradient.reshape(K, N, -1, heads, w).permute(0, 3, 1, 2, 4).reshape(K * heads * N, -1, w)
        d_scores = torch._softmax_backward_data(d_out @ v.mT, weights, -1, weights.dtype)
        d_q = (d_scores @ k).view(K, heads, N, -1, w).permute(0, 2, 3, 1, 4)
        d_key_value = k.new_empty(2, K, heads, N, P + B, w)
        torch.bmm(d_scores.mT, q, out=d_key_value[0].view(-1, P + B, w))
        torch.bmm(weights.mT, d_out, out=d_key_value[1].view(-1, P + B, w))
        d_rows = k.new_empty(K, N, B, 2 if separate else 3, heads, w)
        d_rows[:, :, :, -2:] = d_key_value[..., P:, :].permute(1, 3, 4, 0, 2, 5)
        d_rows[:, 0, :P, -2:] += d_key_value[..., :P, :].sum(3).permute(1, 3, 0, 2, 4)
        if separate:
            return d_q.reshape(K, N, -1, heads * w), d_rows.flatten(3), None, None, None
        d_rows[:, :, :, 0] = d_q
        return None, d_rows.flatten(3), None, None, None
