"""Inserting mistakes into an expert's completion, each followed by the deletions that take it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data import Example
from ..errors import InputError
from ..mdp import ActionSpace, Trajectory


@dataclass(frozen=True)
class Mistake:
    """A run of wrong tokens."""

    position: int
    """How many expert tokens stand before it: the wrong tokens come instead of `completion_ids[position]`."""
    tokens: tuple[int, ...]
    """The wrong tokens: neither `<eos>` nor deletions."""


def demonstrate(
    example: Example, mistakes: Sequence[Mistake], space: ActionSpace, noise_action_weight: float = 1.0
) -> Trajectory:
    """The expert's trajectory with `mistakes` made and taken back (arXiv 2306.05426, algorithm 1).

    After each run of wrong tokens come the fewest deletion actions that lead back to where it started; where only
    deleting everything leads back, the expert starts its completion again.

    Args:
        example: the demonstration.
        mistakes: at ascending positions.
        space: the action space, whose deletions are used.
        noise_action_weight: how much the wrong tokens are imitated, in [0, 1] (the paper's 1 imitates them fully; 0
            teaches undoing them and not making them). Every other action has weight 1.

    Raises:
        InputError: a mistake beyond the completion, or one that no deletion takes back.
    """
    expert = example.completion_ids
    actions: list[int] = []
    weights: list[float] = []
    standing = previous = 0
    for mistake in mistakes:
        if not previous <= mistake.position < len(expert):
            raise InputError(f"mistakes go at ascending positions below {len(expert)}, not at {mistake.position}")
        wrong_length = mistake.position + len(mistake.tokens)
        deletions, landing = space.plan_deletion(wrong_length, mistake.position)
        right = [*expert[standing : mistake.position]]
        actions += [*right, *mistake.tokens, *deletions]
        weights += [1.0] * len(right) + [noise_action_weight] * len(mistake.tokens) + [1.0] * len(deletions)
        standing, previous = landing, mistake.position
    actions += expert[standing:]
    weights += [1.0] * (len(expert) - standing)
    terminated = bool(expert) and expert[-1] == space.eos_token_id
    return Trajectory(np.array(example.prompt_ids), np.array(actions), np.array(weights), terminated, "expert")
