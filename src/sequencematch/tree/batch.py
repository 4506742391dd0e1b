"""State trees as tensors, packed for the model. Shapes: n nodes, padding included, S steps, T trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory
from .forest import Steps, grow
from .tiles import TILES, Layout, Tiles, place_trees


@dataclass(frozen=True)
class TreeBatch:
    """State trees as the model reads them, and their walks as the objective reads them.

    All nodes lie in one flat row, cut into tiles. Node q attends to node k if and only if k <= q < exit[k].
    """

    token: Tensor
    """int64 [n]: input ids; 0 at padding."""
    depth: Tensor
    """int64 [n]: position ids; 0 at padding."""
    exit: Tensor
    """int64 [n]: one past the node's last descendant; a padding node attends to itself alone."""
    completion_length: Tensor
    """int64 [n]: completion tokens in the state, which decides what is legal."""
    state: Tensor
    """int64 [S]: the node each action was taken in."""
    action: Tensor
    """int64 [S]: the action, a token id."""
    next: Tensor
    """int64 [S]: the node it led to."""
    t: Tensor
    """int64 [S]: the action's index in its trajectory."""
    weight: Tensor
    """float32 [S]: how much the action is imitated."""
    trajectory: Tensor
    """int64 [S]: which of the T trajectories it belongs to."""
    length: Tensor
    """int64 [T]: actions of each trajectory."""
    final: Tensor
    """int64 [T]: the node where each trajectory ends."""
    terminated: Tensor
    """bool [T]: whether that node is the absorbing state."""
    is_policy: Tensor
    """bool [T]: True for rollouts of the policy, False for the expert's."""
    tiles: Tiles
    """Blocks of (rows, length) from left to right, n nodes in all. A row holds whole trees, then padding."""
    causal: tuple[bool, ...]
    """For each tile, whether each of its rows holds one string only: then causal attention is the ancestor rule."""
    nodes: int
    """How many of the n nodes are not padding."""

    def to(self, device: torch.device | str) -> TreeBatch:
        """The same batch on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def collate_trajectories(
    trajectories: Sequence[Trajectory],
    space: ActionSpace,
    layout: Layout = TILES,
    groups: Sequence[int] | None = None,
) -> TreeBatch:
    """Trajectories as walks over the trees of their states, steps in the order of the trajectories.

    Args:
        trajectories: at least one.
        space: what their actions mean.
        layout: when trees are shared, and how they are packed.
        groups: for each trajectory a number that says which tree it belongs to; None decides by prompt, see
            `assign_trees`.

    Raises InputError if there are no trajectories, if prompts of one tree differ, or if an action is illegal or out of
    vocabulary.
    """
    tree = assign_trees(trajectories, layout, groups)
    steps = Steps.of(trajectories)
    forest = grow(trajectories, tree, steps, space)
    tiles, start = place_trees(forest.size[forest.roots].tolist(), layout)
    index = forest.flat_index(start)
    n = sum(rows * length for rows, length in tiles)
    exit = np.arange(1, n + 1)
    exit[index] = index + forest.size
    arrays = {
        "token": _spread(forest.token, index, n),
        "depth": _spread(forest.depth, index, n),
        "exit": exit,
        "completion_length": _spread(forest.completion_length, index, n),
        "state": index[forest.state],
        "action": steps.action,
        "next": index[forest.next],
        "t": np.arange(len(steps.action)) - steps.first[steps.trajectory],
        "weight": np.concatenate([trajectory.action_weights for trajectory in trajectories], dtype=np.float32),
        "trajectory": steps.trajectory,
        "length": steps.length,
        "final": index[forest.final],
        "terminated": np.array([trajectory.terminated for trajectory in trajectories]),
        "is_policy": np.array([trajectory.source == "policy" for trajectory in trajectories]),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return TreeBatch(**tensors, tiles=tiles, causal=_single_strings(tiles, arrays["depth"], index), nodes=len(index))


def assign_trees(trajectories: Sequence[Trajectory], layout: Layout, groups: Sequence[int] | None = None) -> list[int]:
    """The tree of each trajectory; trees are numbered from 0 in order of first appearance.

    Without `groups` a prompt has one tree as long as sharing its nodes pays: texts that share nothing but their first
    token get trees of their own, since in one tree the dense mask would be quadratic in all of them together.

    Raises InputError if there are no trajectories or if prompts of one group differ.
    """
    if not trajectories:
        raise InputError("a state tree needs at least one trajectory")
    if groups is None:
        return _trees_by_prompt(trajectories, layout.node_cost)
    number: dict[int, int] = {}
    prompts: dict[int, bytes] = {}
    for trajectory, group in zip(trajectories, groups, strict=True):
        number.setdefault(group, len(number))
        prompt = trajectory.prompt_ids.tobytes()
        if prompts.setdefault(group, prompt) != prompt:
            raise InputError("a state tree holds trajectories of one prompt; give each prompt a group of its own")
    return [number[group] for group in groups]


def _trees_by_prompt(trajectories: Sequence[Trajectory], node_cost: float) -> list[int]:
    tree: list[int] = []
    size: list[int] = []
    latest: dict[bytes, int] = {}
    for trajectory in trajectories:
        key, prompt, new = trajectory.prompt_ids.tobytes(), len(trajectory.prompt_ids), len(trajectory)
        number = latest.get(key)
        if number is None or new * size[number] > prompt * node_cost:
            number = latest[key] = len(size)
            size.append(prompt)
        tree.append(number)
        size[number] += new
    return tree


def _single_strings(tiles: Tiles, depth: np.ndarray, index: np.ndarray) -> tuple[bool, ...]:
    """For each tile, whether every node (they lie at `index`) is as deep as it is far from the start of its row."""
    first = np.cumsum([0, *(rows * length for rows, length in tiles)])
    column = np.concatenate([np.tile(np.arange(length), rows) for rows, length in tiles])
    astray = np.zeros(len(depth), dtype=bool)
    astray[index] = (depth != column)[index]
    return tuple(not astray[start:stop].any() for start, stop in pairwise(first))


def _spread(value: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    """int64 [n]: `value` at `index`, 0 elsewhere."""
    array = np.zeros(n, dtype=np.int64)
    array[index] = value
    return array
