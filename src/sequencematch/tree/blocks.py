"""Which blocks of the ancestor mask hold anything, for block-sparse attention. Shapes: n nodes, N = n / block_size."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_blocks(depth: Tensor, exit: Tensor, block_size: int, window: int | None = None) -> tuple[Tensor, Tensor]:
    """The blocks that attention must look into, and those it need not mask: see `ancestor_mask` for the rule.

    Args:
        depth: int64 [n], n a multiple of `block_size`.
        exit: int64 [n].
        block_size: nodes in a block of queries or keys.
        window: sliding-window size of the attention layer. With one, a block may be kept that holds nothing.

    Returns:
        partial, bool [N, N], query block by key block: something is visible, but perhaps not everything.
        full, bool [N, N]: everything is visible.
    """
    depth, exit = depth.view(-1, block_size), exit.view(-1, block_size)
    block = torch.arange(len(exit), device=exit.device)
    query, key = block[:, None], block[None, :]
    visible = (key == query) | (key < query) & (exit.amax(1) > query * block_size)
    full = (key < query) & (exit.amin(1) >= (query + 1) * block_size)
    if window is not None:
        low, high = depth.amin(1), depth.amax(1)
        visible &= low[:, None] - high[None, :] < window
        full &= high[:, None] - low[None, :] < window
    return visible & ~full, full
