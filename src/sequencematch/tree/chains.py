"""Sums over the paths and subtrees of a forest, without a loop over its nodes.

Shapes: n nodes; `parent` is int64 [n], a parent comes before its children, and -1 is the parent of a root. Most nodes
have the number after their parent's. Such runs are summed by one cumulative sum; only what links the R runs is left for
pointer doubling, whose rounds are the logarithm of how deeply runs are nested.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class Chains:
    """A forest cut into runs of nodes, each the parent of the next."""

    def __init__(self, parent: np.ndarray) -> None:
        first = parent != np.arange(-1, len(parent) - 1)
        first[0] = True
        self.head = np.flatnonzero(first)
        """int64 [R]: the first node of each run."""
        self.last = np.append(self.head[1:], len(parent)) - 1
        """int64 [R]: its last node."""
        self.link = parent[self.head]
        """int64 [R]: the parent of its first node, or -1."""
        self.run = np.cumsum(first) - 1
        """int64 [n]: the run of each node."""

    def path_sums(self, value: np.ndarray) -> np.ndarray:
        """For each node the sum of `value` over it and its ancestors; any integer dtype, [n] to [n]."""
        total = np.cumsum(value, dtype=value.dtype)
        total -= (total - value)[self.head][self.run]
        above_head = np.where(self.link < 0, 0, total[self.link]).astype(value.dtype)
        for below, above in self._jumps():
            above_head[below] += above_head[above]
        return total + above_head[self.run]

    def subtree_sizes(self) -> np.ndarray:
        """int64 [n]: for each node the number of its descendants, itself included."""
        whole = self.last - self.head + 1
        for below, above in self._jumps():
            whole = whole + _totals(above, whole[below], len(whole))
        linked = self.link >= 0
        own = 1 + _totals(self.link[linked], whole[linked], len(self.run))
        total = np.cumsum(own)
        return total[self.last][self.run] - total + own

    def preorder(self, size: np.ndarray, start: np.ndarray) -> np.ndarray:
        """int64 [n]: each node's place in depth-first preorder, children in the order of their numbers.

        Args:
            size: int64 [n], what `subtree_sizes` gives.
            start: int64, the place of each root, in the order of the roots' numbers.
        """
        step = np.ones_like(size)  # from a node's place to its first child's, and then past the siblings before
        by_link = np.argsort(self.link, kind="stable")
        head, link = self.head[by_link], self.link[by_link]
        roots = len(start)
        step[head[:roots]] = start
        head, link = head[roots:], link[roots:]
        before = np.cumsum(size[head]) - size[head]
        before -= before[np.searchsorted(link, link)]
        # A run that goes on after the linking node does so with that node's first child.
        goes_on = self.last[self.run[link]] > link
        step[head] += before + np.where(goes_on, size[np.minimum(link + 1, len(size) - 1)], 0)
        return self.path_sums(step)

    def _jumps(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For 1, 2, 4, ... links up: the runs that have an ancestor that far above them, and which."""
        up = np.where(self.link < 0, -1, self.run[self.link])
        while len(below := np.flatnonzero(up >= 0)):
            above = up[below]
            yield below, above
            up[below] = up[above]


def _totals(index: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(index, weights=value, minlength=n).astype(np.int64)  # exact below 2^53
