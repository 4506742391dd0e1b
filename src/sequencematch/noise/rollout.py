"""Noise from rollouts: whole spans of what the policy really did, where the completion is determined by the prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..data import Example
from ..rollouts import uninterrupted
from .demonstrate import Mistake

if TYPE_CHECKING:
    from ..mdp import ActionSpace
    from ..rollouts import RolloutEngine, SamplingConfig


@dataclass(frozen=True)
class RolloutNoise:
    """The policy answers the prompt; from where its attempt departs from the expert's, its own span is taken back.

    An attempt ends where the policy itself deletes. With deletions forbidden it would be driven past the point at which
    it has learned to give up, and imitating what it writes there would unlearn that.

    Only for data in which the prompt determines the completion: elsewhere another completion is no mistake.
    """

    engine: RolloutEngine
    """Samples the completions."""
    sampling: SamplingConfig
    """How they are sampled."""
    rate: float
    """Probability that an example has its rollout's mistake in it."""

    def mistakes(self, examples: Sequence[Example], rng: np.random.Generator) -> list[list[Mistake]]:
        """At most one mistake in each example: the rollout from where it departs from the expert."""
        found: list[list[Mistake]] = [[] for _ in examples]
        chosen = np.flatnonzero(rng.random(len(examples)) < self.rate).tolist()
        # An attempt has no more actions than that, and what follows it is not needed.
        longest = self.sampling.max_completion_length + 1
        config = replace(self.sampling, max_actions=longest, seed=int(rng.integers(2**31)))
        rollouts = uninterrupted(self.engine.rollout([examples[index].prompt_ids for index in chosen], config))
        for index, rollout in zip(chosen, rollouts, strict=True):
            attempt = first_attempt(rollout.trajectory.actions.tolist(), self.engine.space)
            mistake = departure(examples[index].completion_ids, attempt)
            found[index] = [] if mistake is None else [mistake]
        return found


def first_attempt(actions: Sequence[int], space: ActionSpace) -> tuple[int, ...]:
    """What a rollout writes before it deletes for the first time, or ends."""
    ends = {space.eos_token_id, *space.by_token}
    return tuple(itertools.takewhile(lambda action: action not in ends, actions))


def departure(expert: Sequence[int], completion: Sequence[int]) -> Mistake | None:
    """All of `completion`, an attempt, from where it first differs from the expert's.

    None if it never does, or stops before it does: then there is no wrong token to take back.
    """
    for position, token in enumerate(completion):
        if position >= len(expert) or token != expert[position]:
            return Mistake(position, tuple(completion[position:])) if position < len(expert) else None
    return None
