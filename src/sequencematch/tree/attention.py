"""Who sees whom on packed state trees. Shapes: B rows of L nodes."""

from __future__ import annotations

import torch
from torch import Tensor


def ancestor_mask(depth: Tensor, exit: Tensor, window: int | None = None) -> Tensor:
    """True where node q attends to node k: k is an ancestor of q, or q itself.

        q attends to k  <=>  k <= q < exit[k]   (and depth[q] - depth[k] < window)

    Args:
        depth: int64 [B, L].
        exit: int64 [B, L]; a padding node k has exit k + 1, so no row is ever fully masked.
        window: sliding-window size of the attention layer, in tokens of a state's own string.

    Returns:
        bool [B, L, L], query by key.
    """
    node = torch.arange(depth.shape[-1], device=depth.device)
    query, key = node[:, None], node[None, :]
    mask = (key <= query) & (query < exit[:, None, :])
    if window is not None:
        mask &= depth[:, :, None] - depth[:, None, :] < window
    return mask
