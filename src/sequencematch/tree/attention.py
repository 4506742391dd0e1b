"""Who sees whom on packed state trees. Shapes: rows of L nodes."""

from __future__ import annotations

import torch
from torch import Tensor


def ancestor_mask(depth: Tensor, exit: Tensor, window: int | None = None, first_query: int = 0) -> Tensor:
    """True where node q attends to node k: k is an ancestor of q, or q itself.

        q attends to k  <=>  k <= q < exit[k]   (and depth[q] - depth[k] < window)

    Args:
        depth: int64 [..., L].
        exit: int64 [..., L], counted from the start of each row; a padding node k has exit k + 1, so no row of the mask
            is ever empty.
        window: sliding-window size of the attention layer, in tokens of a state's own string.
        first_query: leave out the queries before this node.

    Returns:
        bool [..., L - first_query, L], query by key.
    """
    node = torch.arange(depth.shape[-1], device=depth.device)
    query, key = node[first_query:, None], node[None, :]
    mask = (key <= query) & (query < exit[..., None, :])
    if window is not None:
        mask &= depth[..., first_query:, None] - depth[..., None, :] < window
    return mask
