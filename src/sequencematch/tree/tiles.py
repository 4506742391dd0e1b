"""Where the trees of a batch lie: in tiles of equally long rows, or one after the other in a single row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

Tiles = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """How the trajectories of a batch become trees, and the trees rows."""

    node_cost: float = 512.0
    """What a node costs in the linear layers, in entries of the attention mask: about 6 per unit of width, so the value
    is that of a narrow model. Joining a tree saves the prompt's nodes and adds (new nodes) x (nodes there) entries.
    `math.inf` always shares a prompt."""
    row_multiple: int | None = None
    """None packs tiles; a number puts all trees into one row whose length is a multiple of it."""


TILES = Layout()


def place_trees(sizes: Sequence[int], layout: Layout) -> tuple[Tiles, np.ndarray]:
    """Tiles as (rows, length), and int64 [trees]: the flat index at which each tree starts."""
    if layout.row_multiple is None:
        return _pack(sizes)
    ends = np.cumsum(sizes, dtype=np.int64)
    length = -(-int(ends[-1]) // layout.row_multiple) * layout.row_multiple
    return ((1, length),), ends - sizes


def _pack(sizes: Sequence[int]) -> tuple[Tiles, np.ndarray]:
    """Best-fit decreasing into rows whose lengths follow the trees.

    A tree goes into the fullest row that has room for it: padding that is there anyway costs nothing. Where none has,
    a tree longer than half of the newest row opens another of that length, a shorter one a row of its own length. So a
    long document never makes short ones pay for long rows.
    """
    n = len(sizes)
    lengths: list[int] = []
    open_rows: list[int] = []  # sorted; one number, room * n + row, so that bisection finds the least room that will do
    row_of, column_of = [0] * n, [0] * n
    for tree in sorted(range(n), key=sizes.__getitem__, reverse=True):
        size = sizes[tree]
        place = bisect_left(open_rows, size * n)
        if place < len(open_rows):
            room, row = divmod(open_rows.pop(place), n)
        else:
            row = len(lengths)
            room = lengths[-1] if lengths and 2 * size > lengths[-1] else size
            lengths.append(room)
        row_of[tree], column_of[tree] = row, lengths[row] - room
        if room > size:
            insort(open_rows, (room - size) * n + row)
    starts = np.cumsum([0, *lengths])
    return tuple((len(list(rows)), length) for length, rows in groupby(lengths)), starts[row_of] + column_of
