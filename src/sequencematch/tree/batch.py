"""Packing state trees into rows of tensors. Shapes: B rows of L nodes, S steps, T trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..mdp import ActionSpace, Trajectory
from .state_tree import StateTree

NODE_IN_MASK_ENTRIES = 512
"""What a node costs in the linear layers, in entries of the attention mask: about 6 per unit of width, so the value is
that of a narrow model. Joining a tree saves the prompt's nodes and adds (new nodes) x (nodes there) entries."""


@dataclass(frozen=True)
class TreeBatch:
    """State trees as the model reads them, and their walks as the objective reads them.

    Node indices in the walks are flat: row * L + column.
    """

    token: Tensor
    """int64 [B, L]: input ids; 0 at padding."""
    depth: Tensor
    """int64 [B, L]: position ids; 0 at padding."""
    exit: Tensor
    """int64 [B, L]: one past the node's last descendant in its row; a padding node attends to itself alone."""
    completion_length: Tensor
    """int64 [B, L]: completion tokens in the state, which decides what is legal."""
    state: Tensor
    """int64 [S]: flat node each action was taken in."""
    action: Tensor
    """int64 [S]: the action, a token id."""
    next: Tensor
    """int64 [S]: flat node it led to."""
    t: Tensor
    """int64 [S]: the action's index in its trajectory."""
    weight: Tensor
    """float32 [S]: how much the action is imitated."""
    trajectory: Tensor
    """int64 [S]: which of the T trajectories it belongs to."""
    length: Tensor
    """int64 [T]: actions of each trajectory."""
    final: Tensor
    """int64 [T]: flat node where each trajectory ends."""
    terminated: Tensor
    """bool [T]: whether that node is the absorbing state."""
    is_policy: Tensor
    """bool [T]: True for rollouts of the policy, False for the expert's."""

    def to(self, device: torch.device | str) -> TreeBatch:
        """The same batch on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def build_trees(trajectories: Sequence[Trajectory], space: ActionSpace) -> list[StateTree]:
    """Group trajectories by prompt and build the trees of each prompt, in order of first appearance.

    A prompt has one tree as long as sharing its nodes pays: texts that share nothing but their first token get trees
    of their own, since in one tree the dense mask would be quadratic in all of them together.

    Raises InputError as `StateTree.build`.
    """
    groups: list[list[int]] = []
    latest: dict[bytes, int] = {}
    size: list[int] = []
    for index, trajectory in enumerate(trajectories):
        prompt, new = trajectory.prompt_ids, len(trajectory)
        group = latest.get(prompt.tobytes())
        if group is None or new * size[group] > len(prompt) * NODE_IN_MASK_ENTRIES:
            group = latest[prompt.tobytes()] = len(groups)
            groups.append([])
            size.append(len(prompt))
        groups[group].append(index)
        size[group] += new
    return [StateTree.build([trajectories[i] for i in group], space, group) for group in groups]


def pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of `sizes` in rows that hold at most `capacity` nodes each."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = [row for row in range(len(rows)) if room[row] >= sizes[index]]
        if fitting:
            row = min(fitting, key=lambda r: room[r])
        else:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= sizes[index]
    return rows


def collate_trees(trees: Sequence[StateTree]) -> TreeBatch:
    """Pack trees into rows as long as the largest of them; roots have depth 0, walks the order of their indices."""
    length = max(len(tree) for tree in trees)
    rows = pack([len(tree) for tree in trees], length)
    shape = (len(rows), length)
    token, depth = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    exit = np.broadcast_to(np.arange(1, length + 1), shape).copy()
    completion = np.zeros(shape, np.int64)
    offsets: dict[int, int] = {}
    for row, members in enumerate(rows):
        column = 0
        for member in members:
            tree = trees[member]
            span = np.s_[row, column : column + len(tree)]
            token[span], depth[span] = tree.token, tree.depth
            exit[span], completion[span] = tree.exit + column, tree.completion_length
            offsets[member] = row * length + column
            column += len(tree)
    arrays = {"token": token, "depth": depth, "exit": exit, "completion_length": completion}
    return TreeBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, **_walks(trees, offsets))


def _walks(trees: Sequence[StateTree], offsets: dict[int, int]) -> dict[str, Tensor]:
    walks = [(walk, offsets[index]) for index, tree in enumerate(trees) for walk in tree.walks]
    walks.sort(key=lambda pair: pair[0].index)
    lengths = np.array([len(walk.state) for walk, _ in walks], dtype=np.int64)
    arrays = {
        "state": np.concatenate([walk.state + offset for walk, offset in walks]),
        "action": np.concatenate([walk.trajectory.actions for walk, _ in walks]),
        "next": np.concatenate([walk.next + offset for walk, offset in walks]),
        "t": np.concatenate([np.arange(length) for length in lengths]),
        "weight": np.concatenate([walk.trajectory.action_weights for walk, _ in walks]).astype(np.float32),
        "trajectory": np.repeat(np.arange(len(walks)), lengths),
        "length": lengths,
        "final": np.array([walk.final + offset for walk, offset in walks], dtype=np.int64),
        "terminated": np.array([walk.trajectory.terminated for walk, _ in walks]),
        "is_policy": np.array([walk.trajectory.source == "policy" for walk, _ in walks]),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
