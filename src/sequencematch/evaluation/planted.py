"""Can the model tell its mistakes? Some are planted, and it is asked whether to delete there and elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory
from ..models import evaluate_states, evaluation_mode
from ..noise import demonstrate
from ..tree import TreeBatch
from .statistics import Interval, ratio_interval
from .walks import in_batches, tree_batches

if TYPE_CHECKING:
    from ..data import Example
    from ..noise import Mistake, NoiseSource


@dataclass(frozen=True)
class Decisions:
    """One way of deciding whether to delete, with 95% intervals over examples."""

    recall: Interval
    """P(delete | wrong): how much it deletes in states after a wrong token."""
    false_alarm: Interval
    """P(delete | right): how much it deletes in states without one."""

    def precision(self, error_rate: float) -> float:
        """P(wrong | delete) where the share `error_rate` of the states that one is asked in are wrong.

            precision = e recall / (e recall + (1 - e) false alarm)

        nan where nothing is ever deleted. Raises InputError unless 0 <= error_rate <= 1.
        """
        if not 0 <= error_rate <= 1:
            raise InputError(f"an error rate is a share of states, from 0 to 1, not {error_rate}")
        hits = error_rate * self.recall.estimate
        deletions = hits + (1 - error_rate) * self.false_alarm.estimate
        return hits / deletions if deletions else float("nan")


@dataclass(frozen=True)
class Detection:
    """How well deletions find planted mistakes."""

    sampled: Decisions
    """Deletions as they are sampled at temperature 1: the mean of pi(deletion|s) over wrong and over right states."""
    likely: Decisions
    """Deletions where they are more likely than not, pi(deletion|s) > 1/2."""
    auroc: float
    """Probability that pi(deletion|s) is higher in a wrong state than in a right one, both drawn at random, ties
    counting half: the area under the ROC curve. Whatever the threshold, 1/2 is a model that cannot tell."""
    wrong: int
    """How many wrong states were looked at."""
    right: int
    """How many right ones."""

    @property
    def planted_rate(self) -> float:
        """Share of wrong states among those looked at."""
        return self.wrong / (self.wrong + self.right)


def planted_detection(
    model: Any,
    space: ActionSpace,
    examples: Sequence[Example],
    source: NoiseSource,
    rng: np.random.Generator,
    batch_size: int = 16,
) -> Detection:
    """Plant mistakes in clean completions, one at a time, and read the policy's probability of deleting.

    pi(deletion|s), the sum over all deletions that are legal in s, is read in

    - wrong states: those in which a demonstration deletes (`demonstrate`), where the completion holds a planted token.
      After a mistake of several tokens these are each state on the way back; where one deletion takes all of them back,
      only the last.
    - right states: those on the expert's own way with something to delete.

    Each state of an example counts once, however often the demonstration comes by. One forward pass over the trees of
    each batch.

    Args:
        model: the causal language model, on its device; see `prepare_model`. It is evaluated in evaluation mode.
        space: the action space, with at least one deletion.
        examples: the data, which the model should not have been trained on.
        source: plants the mistakes: uniform tokens, a task's or a model's own. To compare models, plant the same in all
            of them: give each the same source, and a generator of the same seed.
        rng: the source's random numbers.
        batch_size: examples in one forward pass.

    Raises InputError for a completion with a deletion in it, if no mistake is planted, if one begins with the expert's
    own token or no deletion takes it back, if no right state has anything to delete, for an example that does not fit
    the model's positions, and for probabilities that are not finite.
    """
    trajectories: list[Trajectory] = []
    for chunk in in_batches(examples, batch_size):
        for example, mistakes in zip(chunk, source.mistakes(chunk, rng), strict=True):
            _check(example, mistakes, space)
            trajectories.append(demonstrate(example, mistakes, space))
    wrong: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for batch in tree_batches(model, space, trajectories, batch_size):
        with evaluation_mode(model), torch.no_grad():
            deletes = evaluate_states(model, batch, space).deletes
        assert deletes is not None
        for kind, chosen in zip((wrong, right), wrong_and_right(batch, space), strict=True):
            kind += _by_trajectory(batch, deletes, chosen)
    return _detection(wrong, right)


def wrong_and_right(batch: TreeBatch, space: ActionSpace) -> tuple[Tensor, Tensor]:
    """Which steps of a batch's demonstrations are taken in wrong states and which in right ones.

    Returns:
        bool [S] each: the steps where the expert deletes off its own way, and those where it goes on (or errs) on its
        own way with something to delete.
    """
    final = batch.final[batch.trajectory]
    on_the_way = (batch.state <= final) & (final < batch.exit[batch.state])
    expert = ~batch.is_policy[batch.trajectory]
    tokens = torch.tensor(list(space.by_token), device=batch.action.device, dtype=batch.action.dtype)
    deletion = torch.isin(batch.action, tokens)
    nonempty = batch.completion_length[batch.state] > 0
    return expert & deletion & ~on_the_way, expert & ~deletion & on_the_way & nonempty


def _by_trajectory(batch: TreeBatch, deletes: Tensor, chosen: Tensor) -> list[np.ndarray]:
    """pi(deletion|s) of the chosen steps' states, each state once: for each trajectory float64 [its states]."""
    nodes = len(batch.token)
    place = (batch.trajectory * nodes + batch.state)[chosen].cpu().numpy()
    places, first = np.unique(place, return_index=True)
    ends = np.searchsorted(places, nodes * np.arange(1, len(batch.length)))
    return np.split(deletes[chosen].double().cpu().numpy()[first], ends)


def _check(example: Example, mistakes: Sequence[Mistake], space: ActionSpace) -> None:
    if not space.by_token.keys().isdisjoint(example.completion_ids):
        raise InputError("a completion has a deletion in it already; plant mistakes in clean data")
    for mistake in mistakes:
        if mistake.tokens[:1] == example.completion_ids[mistake.position : mistake.position + 1]:
            raise InputError(
                f"the mistake planted at position {mistake.position} begins with the expert's own token; plant what "
                "differs from it"
            )


def _detection(wrong: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> Detection:
    """From pi(deletion|s) of each example's wrong and right states."""
    from scipy.stats import mannwhitneyu

    if not any(map(len, wrong)):
        raise InputError("no mistake was planted; raise the source's rate or give more examples")
    if not any(map(len, right)):
        raise InputError("no completion has a state after a right token; give completions of at least two tokens")
    positives, negatives = np.concatenate(wrong), np.concatenate(right)
    if not np.isfinite([positives.sum(), negatives.sum()]).all():
        raise InputError("the model's probabilities are not finite; its weights may have diverged")
    above = mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return Detection(
        sampled=Decisions(_mean(wrong), _mean(right)),
        likely=Decisions(_mean([values > 0.5 for values in wrong]), _mean([values > 0.5 for values in right])),
        auroc=float(above) / (len(positives) * len(negatives)),
        wrong=len(positives),
        right=len(negatives),
    )


def _mean(examples: Sequence[np.ndarray]) -> Interval:
    """The mean over all states, with its bootstrap interval over examples."""
    return ratio_interval([values.sum() for values in examples], [len(values) for values in examples])
