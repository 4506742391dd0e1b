"""Attention over a state tree through stock models: dense, tile by tile, or block-sparse (FlexAttention).

Shapes: n nodes of a batch in one row, R rows of L nodes in a tile, H heads, D their width.

A model's layers call the attention function whose name its config holds, with whatever mask the model was called
with. The functions registered here look at the mask: on a `TileMask` they run the family's own attention tile by tile,
on a `BlockMask` FlexAttention, and otherwise they are the family's own attention, so that generation and rollouts
work as ever. Nothing depends on when a layer runs, so gradient checkpointing may run it again later.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from ..errors import InputError
from ..tree import Layout, TreeBatch, ancestor_mask, visible_blocks
from .masks import additive, dense_mask, is_eager, layer_masks
from .support import EAGER, SDPA

TreeAttention = Literal["auto", "tiled", "flex", "dense"]
"""How the layers see a tree: `tiled` and `flex` skip what no node sees, `dense` is the reference."""

FLEX_BLOCK = 128
"""Nodes in a block of FlexAttention's mask."""
QUERY_BLOCK = 256
"""Queries of a tile that are run together: in preorder, none of them sees beyond the last of them."""


@dataclass(frozen=True)
class Tile:
    """R rows of L nodes, and what each block of queries sees of the keys up to its own last."""

    rows: int
    length: int
    blocks: tuple[tuple[slice, Tensor | None], ...]
    """Queries of each row, and their mask, float [R, 1, queries, keys]; None for plain causal attention."""


class PlannedMask(BlockMask):
    """Who sees whom in one row of n nodes, and how that is computed.

    A BlockMask by name only: models hand those to their layers as they are.
    """

    ndim = 4

    def __init__(self, nodes: int) -> None:
        self.seq_lengths = (nodes, nodes)

    @property
    def shape(self) -> tuple[int, ...]:
        """What a dense mask of all nodes would have."""
        return (1, 1, *self.seq_lengths)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.seq_lengths[0]})"

    def attend(
        self, own: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Tensor:
        """Attention of all nodes, by `own`, the family's function. query float [1, H, n, D] -> float [1, n, H, D]."""
        raise NotImplementedError


class TileMask(PlannedMask):
    """The tiles of a batch, each of which is attended to by itself."""

    def __init__(self, tiles: tuple[Tile, ...]) -> None:
        super().__init__(sum(tile.rows * tile.length for tile in tiles))
        self.tiles = tiles

    def attend(
        self, own: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Tensor:
        """Tile by tile; see `PlannedMask.attend`."""
        sizes = [tile.rows * tile.length for tile in self.tiles]
        outputs = []
        for tile, *states in zip(self.tiles, *(x.split(sizes, 2) for x in (query, key, value)), strict=True):
            # [1, H, R L, D] -> [R, H, L, D], a view.
            q, k, v = (x[0].unflatten(1, (tile.rows, tile.length)).transpose(0, 1) for x in states)
            blocks = [
                own(
                    module,
                    q[:, :, at],
                    k[:, :, : at.stop],
                    v[:, :, : at.stop],
                    None if seen is None else seen.to(q.dtype),  # quantised models compute in a dtype of their own
                    **kwargs,
                )[0]
                for at, seen in tile.blocks
            ]
            outputs.append(torch.cat(blocks, 1).flatten(0, 1))
        return torch.cat(outputs)[None]


def choose(model: Any, attention: str) -> TreeAttention:
    """`flex` on a CUDA device and `tiled` elsewhere for `auto`; otherwise what is asked for.

    Raises InputError for an unknown name, and for `flex` where it cannot run.
    """
    if attention not in get_args(TreeAttention):
        raise InputError(f"tree_attention is one of {', '.join(get_args(TreeAttention))}, not {attention!r}")
    text = model.config.get_text_config(decoder=True)
    drops = any(getattr(text, name, 0) for name in ("attention_dropout", "attn_pdrop", "attn_dropout"))
    if attention == "flex" and (drops or not torch.cuda.is_available()):
        reason = "has no attention dropout; set it to 0 in the model's config" if drops else "needs a CUDA device"
        raise InputError(f"FlexAttention {reason}, or use tree_attention: tiled")
    if attention != "auto":
        return attention  # type: ignore[return-value]
    return "flex" if model.device.type == "cuda" and not drops else "tiled"


def layout_for(attention: TreeAttention, config: Any) -> Layout:
    """How a batch is laid out for an attention: one padded row for flex, tiles for the others."""
    if attention == "flex":
        return Layout(node_cost=math.inf, row_multiple=FLEX_BLOCK)
    # A node's linear layers cost about 24 D^2 operations, a mask entry about 4 D.
    return Layout(node_cost=6.0 * config.get_text_config(decoder=True).hidden_size)


def tree_masks(attention: TreeAttention, config: Any, batch: TreeBatch, dtype: torch.dtype) -> Any:
    """The ancestor rule as the model's layers want it: one mask, or one by layer type where they differ.

    A sliding window is measured in depth, so a state sees the same context as in a sequence of its own.
    """
    if attention == "flex":
        return layer_masks(config, partial(_flex_mask, batch))
    if attention == "tiled":
        return layer_masks(config, partial(_tile_mask, config, batch, dtype))
    return layer_masks(
        config, lambda window: dense_mask(config, ancestor_mask(batch.depth, batch.exit, window)[None, None], dtype)
    )


def prompt_masks(config: Any, tiles: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> Any:
    """Plain causal attention within each of many strings in one row, as the model's layers want it.

    Args:
        config: the model's config.
        tiles: (R, L) of each tile, which holds R strings of L tokens.
        dtype: of the masks, where the attention needs any.
        device: their device.
    """

    def mask(window: int | None) -> TileMask:
        found = []
        for rows, length in tiles:
            depth = torch.arange(length, device=device).expand(rows, length)
            found.append(_tile(depth, torch.full_like(depth, length), True, config, dtype, window))
        return TileMask(tuple(found))

    return layer_masks(config, mask)


def _tile_mask(config: Any, batch: TreeBatch, dtype: torch.dtype, window: int | None) -> TileMask:
    tiles, start = [], 0
    for (rows, length), causal in zip(batch.tiles, batch.causal, strict=True):
        span = slice(start, start + rows * length)
        first = start + length * torch.arange(rows, device=batch.depth.device)[:, None]
        depth, exit = (values[span].view(rows, length) for values in (batch.depth, batch.exit))
        tiles.append(_tile(depth, exit - first, causal, config, dtype, window))
        start = span.stop
    return TileMask(tuple(tiles))


def _tile(depth: Tensor, exit: Tensor, causal: bool, config: Any, dtype: torch.dtype, window: int | None) -> Tile:
    """A tile of nodes with `depth` and `exit` (counted in the row), int [R, L]; `causal` if each row is one string."""
    rows, length = depth.shape
    if causal and not is_eager(config) and (window is None or window >= length):
        return Tile(rows, length, ((slice(0, length), None),))
    blocks: list[tuple[slice, Tensor | None]] = []
    for stop in (*range(QUERY_BLOCK, length, QUERY_BLOCK), length):
        queries = slice(blocks[-1][0].stop if blocks else 0, stop)
        seen = ancestor_mask(depth[:, :stop], exit[:, :stop], window, first_query=queries.start)
        blocks.append((queries, additive(seen, dtype)[:, None]))
    return Tile(rows, length, tuple(blocks))


def _flex_mask(batch: TreeBatch, window: int | None) -> BlockMask:
    depth, exit = batch.depth, batch.exit
    partial_blocks, full_blocks = visible_blocks(depth, exit, FLEX_BLOCK, window)

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < exit[key])
        return seen if window is None else seen & (depth[query] - depth[key] < window)

    counts = [blocks.sum(-1, dtype=torch.int32)[None, None] for blocks in (partial_blocks, full_blocks)]
    indices = [
        blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True).to(torch.int32)[None, None].contiguous()
        for blocks in (partial_blocks, full_blocks)
    ]
    mask = BlockMask.from_kv_blocks(
        counts[0], indices[0], counts[1], indices[1], BLOCK_SIZE=FLEX_BLOCK, mask_mod=mask_mod
    )
    mask.ndim = 4  # type: ignore[attr-defined]  # GPT-2 asks
    return mask


def _attention(own: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any):
    """What the layers call: query float [B, H, n, D] -> float [B, n, H, D] and None."""
    if isinstance(mask, PlannedMask):
        return mask.attend(own, module, query, key, value, **kwargs), None
    if isinstance(mask, BlockMask):
        # Compiled for the first length, then once more for any length.
        return flex_attention_forward(module, query, key, value, mask, **kwargs)
    return own(module, query, key, value, mask, **kwargs)


def _eager(module: nn.Module, *args: Any, **kwargs: Any):
    """The eager attention of the module's own family: transformers keeps it beside the layer, under this name."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)  # type: ignore


AttentionInterface.register(SDPA, partial(_attention, sdpa_attention_forward))
AttentionInterface.register(EAGER, partial(_attention, _eager))
AttentionMaskInterface.register(SDPA, sdpa_mask)
AttentionMaskInterface.register(EAGER, eager_mask)
