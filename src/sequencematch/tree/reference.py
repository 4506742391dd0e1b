"""The state tree in plain Python: the reference that the tests hold the fast path in `forest` against.

A tree has every state that its trajectories visit, once, in depth-first preorder, children in the order in which
they were first reached. Shapes: n nodes. A node is a state, the string from the root to it; appending goes to a child,
deleting to an ancestor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..mdp import ActionSpace, Trajectory
from ..mdp.replay import check_actions
from .batch import TreeBatch, assign_trees
from .tiles import TILES, Layout, place_trees


@dataclass(frozen=True)
class Walk:
    """One trajectory on the tree: its N actions and the nodes around them."""

    state: np.ndarray
    """int64 [N]: the node each action was taken in."""
    next: np.ndarray
    """int64 [N]: the node it led to."""
    trajectory: Trajectory
    """The trajectory itself: actions, weights, source."""
    start: int
    """The node of the initial state (the prompt's last token)."""
    index: int
    """Its place among the trajectories that were given."""

    @property
    def final(self) -> int:
        """The node where the walk ends: the absorbing state if the trajectory terminated."""
        return int(self.next[-1]) if len(self.next) else self.start


@dataclass(frozen=True)
class StateTree:
    """The states of one prompt's trajectories. Node q attends to node k if and only if k <= q < exit[k]."""

    token: np.ndarray
    """int64 [n]: the last token of each state."""
    depth: np.ndarray
    """int64 [n]: the state's length minus one, which is its position id."""
    exit: np.ndarray
    """int64 [n]: one past the last descendant."""
    prompt_length: int
    """How many nodes, from the root down, are the prompt."""
    walks: tuple[Walk, ...]
    """One walk for each trajectory."""

    def __len__(self) -> int:
        """The number of nodes n."""
        return len(self.token)

    @property
    def completion_length(self) -> np.ndarray:
        """int64 [n]: completion tokens in each state; 0 inside the prompt, where no action is taken."""
        return np.maximum(self.depth - (self.prompt_length - 1), 0)

    @property
    def is_string(self) -> bool:
        """Whether no node has two children."""
        return np.array_equal(self.depth, np.arange(len(self)))

    @classmethod
    def build(
        cls, trajectories: Sequence[Trajectory], space: ActionSpace, indices: Sequence[int] | None = None
    ) -> StateTree:
        """Build the tree of trajectories that share one prompt; `indices` number their walks, 0 to T - 1 if not given.

        Raises InputError if there are none, if prompts differ, or if an action is illegal or out of vocabulary.
        """
        assign_trees(trajectories, TILES, [0] * len(trajectories))
        prompt = trajectories[0].prompt_ids
        trie = _Trie(prompt.tolist())
        visits = []
        for trajectory in trajectories:
            check_actions(trajectory, space)
            visits.append(trie.walk(trajectory.actions.tolist(), space))
        order, depth, exit = trie.preorder()
        walks = [
            Walk(order[nodes[:-1]], order[nodes[1:]], trajectory, len(prompt) - 1, index)
            for nodes, trajectory, index in zip(visits, trajectories, indices or range(len(visits)), strict=True)
        ]
        token = np.empty(len(order), dtype=np.int64)
        token[order] = trie.token
        return cls(token, depth, exit, len(prompt), tuple(walks))


def collate_reference(
    trajectories: Sequence[Trajectory],
    space: ActionSpace,
    layout: Layout = TILES,
    groups: Sequence[int] | None = None,
) -> TreeBatch:
    """What `collate_trajectories` does, tree by tree and walk by walk."""
    number = assign_trees(trajectories, layout, groups)
    members = [[i for i, tree in enumerate(number) if tree == wanted] for wanted in range(max(number) + 1)]
    trees = [StateTree.build([trajectories[i] for i in group], space, group) for group in members]
    tiles, starts = place_trees([len(tree) for tree in trees], layout)
    n = sum(rows * length for rows, length in tiles)
    nodes = {name: np.zeros(n, dtype=np.int64) for name in ("token", "depth", "completion_length")}
    nodes["exit"] = np.arange(1, n + 1)
    for tree, start in zip(trees, starts, strict=True):
        span = slice(start, start + len(tree))
        for name, array in nodes.items():
            array[span] = getattr(tree, name) + (start if name == "exit" else 0)
    walks = [(walk, start) for tree, start in zip(trees, starts, strict=True) for walk in tree.walks]
    walks.sort(key=lambda pair: pair[0].index)
    steps = {
        "state": np.concatenate([walk.state + start for walk, start in walks]),
        "action": np.concatenate([walk.trajectory.actions for walk, _ in walks]),
        "next": np.concatenate([walk.next + start for walk, start in walks]),
        "t": np.concatenate([np.arange(len(walk.trajectory)) for walk, _ in walks]),
        "weight": np.concatenate([walk.trajectory.action_weights for walk, _ in walks]).astype(np.float32),
        "trajectory": np.repeat(np.arange(len(walks)), [len(walk.trajectory) for walk, _ in walks]),
        "length": np.array([len(walk.trajectory) for walk, _ in walks]),
        "final": np.array([walk.final + start for walk, start in walks]),
        "terminated": np.array([walk.trajectory.terminated for walk, _ in walks]),
        "is_policy": np.array([walk.trajectory.source == "policy" for walk, _ in walks]),
    }
    tensors = {name: torch.from_numpy(array) for name, array in {**nodes, **steps}.items()}
    causal, first = [], 0
    for rows, length in tiles:
        inside = [
            (start - first, tree)
            for tree, start in zip(trees, starts, strict=True)
            if 0 <= start - first < rows * length
        ]
        causal.append(all(start % length == 0 and tree.is_string for start, tree in inside))
        first += rows * length
    return TreeBatch(**tensors, tiles=tiles, causal=tuple(causal), nodes=sum(map(len, trees)))


class _Trie:
    """Nodes in the order they were first reached; a parent always comes before its children."""

    def __init__(self, prompt: list[int]) -> None:
        self.token = list(prompt)
        self.parent = list(range(-1, len(prompt) - 1))
        self.children: dict[tuple[int, int], int] = {}
        self.start = len(prompt) - 1

    def walk(self, actions: list[int], space: ActionSpace) -> list[int]:
        """The N + 1 nodes that `actions` visit from the initial state."""
        path = [self.start]
        visited = [self.start]
        for step, action in enumerate(actions):
            length = len(path) - 1
            if action in space.by_token:
                space.check_legal(action, length, step)
                del path[space.next_length(action, length) + 1 :]
            else:
                path.append(self._child(path[-1], action))
            visited.append(path[-1])
        return visited

    def _child(self, node: int, token: int) -> int:
        child = self.children.get((node, token))
        if child is None:
            child = self.children[node, token] = len(self.token)
            self.token.append(token)
            self.parent.append(node)
        return child

    def preorder(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each node's preorder index [n], and the depths and exits [n] in preorder."""
        n = len(self.token)
        size = [1] * n
        for node in range(n - 1, 0, -1):
            size[self.parent[node]] += size[node]
        index, depth, free = [0] * n, [0] * n, [1] * n
        for node in range(1, n):
            parent = self.parent[node]
            index[node] = free[parent]
            depth[node] = depth[parent] + 1
            free[parent] += size[node]
            free[node] = index[node] + 1
        order = np.array(index, dtype=np.int64)
        depths = np.empty(n, dtype=np.int64)
        exits = np.empty(n, dtype=np.int64)
        depths[order] = depth
        exits[order] = order + np.array(size, dtype=np.int64)
        return order, depths, exits
