"""Q and V of a linear head, tile by tile. Shapes: M states, D hidden width, V vocabulary, S steps.

A tile is some states by some of the vocabulary. The forward pass folds the tiles of a state into a running logsumexp;
the backward pass computes each tile again and turns it into its own gradient, in place. That is four matrix products
where holding the logits needs three; what it saves is every pass over [M, V] in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .legality import mask_short_in_tile_

TILE_STATES = 4096
"""States in a tile at most: more do not make the matrix products faster."""


def tile_entries(device: torch.device) -> int:
    """Logits in a tile: 8 MiB in float32 stay in a CPU's cache, 128 MiB keep an accelerator busy."""
    return 1 << 21 if device.type == "cpu" else 1 << 25


@dataclass(frozen=True)
class _Tile:
    """Some states by some of the vocabulary, and the steps whose state and action both lie there."""

    states: slice
    columns: slice
    steps: Tensor
    """int64: indices of those steps."""
    row: Tensor
    """int64: their states, counted from the tile's first."""
    column: Tensor
    """int64: their actions, counted from the tile's first."""


class TiledHead(torch.autograd.Function):
    """`head_values` of a linear head: (hidden [M, D], weight [V, D], bias [V] or None, ...) -> (Q [S], V [M]).

    What is legal comes as the shortest completion of each action that is not legal everywhere. The value of a state
    with no legal action is -inf, and Q of an action that is illegal where it is taken as well.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, completion_length, row, action, shortest, transform):
        """Fold every tile into the running logsumexp of its states, and pick the logits of its steps."""
        device = hidden.device.type
        ctx.narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.legal, ctx.transform = (completion_length, shortest), transform
        ctx.tiles = _plan(hidden, len(weight), row, action)
        # Below every logit, but finite: the first tile of a state may hold illegal actions only.
        top = hidden.new_full((len(hidden),), torch.finfo(torch.float32).min, dtype=wide_dtype(hidden.dtype))
        total, q = torch.zeros_like(top), top.new_zeros(len(row))
        for tile, _, _, logits in _logits(ctx, hidden, weight, bias):
            q[tile.steps] = logits[tile.row, tile.column]
            highest = torch.maximum(top[tile.states], logits.amax(-1))
            total[tile.states] *= torch.exp(top[tile.states] - highest)
            total[tile.states] += logits.sub_(highest[:, None]).exp_().sum(-1)
            top[tile.states] = highest
        v = top + total.log()
        # Finite where nothing is legal, so that the probabilities there come out as zero and not as NaN.
        ctx.save_for_backward(hidden, weight, bias, v.clamp(min=torch.finfo(v.dtype).min))
        return q, v

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_v):
        """Turn every tile, computed again, into the gradient of its logits, and that into the inputs' gradients."""
        hidden, weight, bias, v = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=v.dtype) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=v.dtype) if wants_bias else None
        part = torch.empty(0)
        for tile, rows, table, logits in _logits(ctx, hidden, weight, bias):
            slope = ctx.transform.slope(logits)
            gradient = logits.sub_(v[tile.states, None]).exp_().mul_(grad_v[tile.states, None])
            gradient.index_put_((tile.row, tile.column), grad_q[tile.steps], accumulate=True)
            if isinstance(slope, Tensor) or slope != 1.0:
                gradient.mul_(slope)
            if d_bias is not None:
                d_bias[tile.columns] += gradient.sum(0)
            narrow = gradient.to(ctx.narrow)
            if d_hidden is not None:
                _add_product(d_hidden[tile.states], narrow, table)
            if d_weight is not None:
                # Summed over all states in full precision before it is rounded to the weight's own.
                target = d_weight[tile.columns]
                if tile.states.start == 0:
                    part = target.to(v.dtype)
                _add_product(part, narrow.t(), rows)
                if target.dtype != v.dtype:
                    target.copy_(part)
        gradients = zip((d_hidden, d_weight, d_bias), (hidden, weight, bias), strict=True)
        return (*(None if g is None else g.to(of.dtype) for g, of in gradients), None, None, None, None, None)


def _plan(hidden: Tensor, vocab_size: int, row: Tensor, action: Tensor) -> list[_Tile]:
    """The tiles, vocabulary slice by vocabulary slice, each with its steps."""
    if not len(hidden):
        return []
    height = min(len(hidden), TILE_STATES)
    width = max(tile_entries(hidden.device) // height, 1)
    states, columns = list(slices(len(hidden), height)), list(slices(vocab_size, width))
    number = action // width * len(states) + row // height
    order = number.argsort(stable=True)
    bounds = torch.arange(1, len(states) * len(columns), device=row.device)
    steps = order.tensor_split(torch.searchsorted(number[order], bounds).cpu())
    places = [(rows, actions) for actions in columns for rows in states]
    return [
        _Tile(rows, actions, within, row[within] - rows.start, action[within] - actions.start)
        for (rows, actions), within in zip(places, steps, strict=True)
    ]


def _logits(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> Iterator[tuple[_Tile, Tensor, Tensor, Tensor]]:
    """Each tile with its part of hidden and weight, as they are multiplied, and its legal logits, float32 or float64.

    The same memory serves the next tile, so the logits may be overwritten but not kept.
    """
    completion_length, shortest = ctx.legal
    size = max(((t.states.stop - t.states.start) * (t.columns.stop - t.columns.start) for t in ctx.tiles), default=0)
    buffer = hidden.new_empty(size, dtype=ctx.narrow)
    for tile in ctx.tiles:
        rows, table = hidden[tile.states].to(ctx.narrow), weight[tile.columns].to(ctx.narrow)
        raw = buffer[: len(rows) * len(table)].view(len(rows), len(table))
        with torch.autocast(hidden.device.type, enabled=False):
            torch.mm(rows, table.t(), out=raw)
        if bias is not None:
            raw += bias[tile.columns].to(ctx.narrow)
        logits = ctx.transform.apply_(raw.to(wide_dtype(raw.dtype)))
        mask_short_in_tile_(logits, tile.columns.start, completion_length[tile.states], shortest)
        yield tile, rows, table, logits


def slices(length: int, width: int) -> Iterator[slice]:
    """`range(length)` in slices of at most `width`."""
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, never rounded to half precision on the way."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is too coarse for sums of exponentials: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
