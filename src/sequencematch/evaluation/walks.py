"""Walks through the token MDP in batches of state trees: measuring them takes one forward pass over each batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory, replay
from ..models import check_fits, layout_of
from ..tree import TreeBatch, collate_trajectories

T = TypeVar("T")


def in_batches(items: Sequence[T], batch_size: int) -> Iterator[Sequence[T]]:
    """`batch_size` items at a time, the last batch with what is left. Raises InputError for a batch size below 1."""
    if batch_size < 1:
        raise InputError(f"a batch has a size of at least 1, not {batch_size}")
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]


def tree_batches(
    model: Any, space: ActionSpace, trajectories: Sequence[Trajectory], batch_size: int
) -> Iterator[TreeBatch]:
    """The trees of `batch_size` trajectories at a time, in their order, on the model's device and laid out for it.

    Raises InputError for a batch size below 1, an illegal action, or a state longer than the model has positions for.
    """
    for chunk in in_batches(trajectories, batch_size):
        for trajectory in chunk:
            check_fits(model, len(trajectory.prompt_ids), max(replay(trajectory, space).lengths))
        yield collate_trajectories(chunk, space, layout_of(model)).to(model.device)
