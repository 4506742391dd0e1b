"""Best of n: several completions of each prompt for the price of one that deletes, and which of them to take."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory, replay
from ..rollouts import Rollout, uninterrupted

if TYPE_CHECKING:
    from ..rollouts import HFRolloutEngine, SamplingConfig


def draw_within(
    engine: HFRolloutEngine, prompts: Sequence[Sequence[int]], config: SamplingConfig, actions: int
) -> list[list[Rollout]]:
    """Independent completions of each prompt, one after the other, until `actions` actions have been sampled.

    The first is sampled whole, whatever it takes, and is what `engine.rollout` gives with the same `config`. Each later
    one that would exceed the budget is cut where the budget is used up (`max_actions`), so that no action is sampled
    that does not count: the actions of all completions of a prompt are exactly `actions`, or those of the first alone
    if they are more. What is drawn for one prompt does not depend on the others.

    Args:
        engine: samples; all prompts with a budget left are sampled together, in rounds.
        prompts: token ids, each of at least one.
        config: how to sample each completion.
        actions: the budget of each prompt, deletions and `<eos>` included.

    Returns:
        for each prompt its completions in the order they were drawn, at least one.

    Raises InputError for a bad prompt, a budget below 1, or greedy decoding, which would draw the same again.
    """
    if actions < 1:
        raise InputError(f"a budget must be at least one action, not {actions}")
    if config.greedy:
        raise InputError("completions that are chosen from must differ; sample them with a temperature above 0")
    seed = secrets.randbits(64) if config.seed is None else config.seed
    first = uninterrupted(engine.rollout(prompts, replace(config, seed=seed)))
    drawn = [[rollout] for rollout in first]
    left = {index: actions - len(rollout.trajectory) for index, rollout in enumerate(first)}
    while left := {index: budget for index, budget in left.items() if budget > 0 and len(drawn[index][-1].trajectory)}:
        limit = min(config.action_limit, max(left.values()))
        seeds = [_seed(seed, index, len(drawn[index])) for index in left]
        rollouts = engine.rollout([prompts[index] for index in left], replace(config, max_actions=limit), seeds=seeds)
        for index, rollout in zip(list(left), uninterrupted(rollouts), strict=True):
            drawn[index].append(_cut(rollout, left[index], engine.space))
            left[index] -= len(drawn[index][-1].trajectory)
    return drawn


def choose_likeliest(rollouts: Sequence[Rollout]) -> Rollout:
    """The completion whose actions have the greatest sum of log-probabilities; of equals, the first.

    What has ended comes before what was cut. Raises InputError if there are none.
    """
    return max(_eligible(rollouts), key=_likelihood)


def choose_majority(rollouts: Sequence[Rollout]) -> Rollout:
    """The likeliest rollout to the most frequent completion: self-consistency (Wang et al. 2023, arXiv 2203.11171).

    Completions are the same if their surviving tokens are, however they were written. Of equally frequent ones, that
    with the likeliest rollout. What has ended comes before what was cut, which has no vote beside it. Raises InputError
    if there are none.
    """
    groups: defaultdict[tuple[int, ...], list[Rollout]] = defaultdict(list)
    for rollout in _eligible(rollouts):
        groups[rollout.completion].append(rollout)
    best = [(len(group), choose_likeliest(group)) for group in groups.values()]
    return max(best, key=lambda found: (found[0], _likelihood(found[1])))[1]


def _eligible(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those that have ended, or all if none has."""
    if not rollouts:
        raise InputError("there is no completion to choose; draw at least one")
    return [rollout for rollout in rollouts if rollout.trajectory.terminated] or list(rollouts)


def _likelihood(rollout: Rollout) -> float:
    return float(rollout.log_probs.sum())


def _seed(seed: int, index: int, count: int) -> int:
    """The seed of a prompt's completion number `count`."""
    return int(np.random.SeedSequence(seed, spawn_key=(index, count)).generate_state(1, np.uint64)[0])


def _cut(rollout: Rollout, actions: int, space: ActionSpace) -> Rollout:
    """What the rollout would have been with so many actions at most."""
    walk = rollout.trajectory
    if len(walk) <= actions:
        return rollout
    part = Trajectory(
        prompt_ids=walk.prompt_ids,
        actions=walk.actions[:actions],
        terminated=False,
        source=walk.source,
        policy_version=walk.policy_version,
    )
    return Rollout(part, rollout.log_probs[:actions], replay(part, space).completion, "max_actions")
