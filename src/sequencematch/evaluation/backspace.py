"""How a policy deletes: how often, how much, where in the text, and whether anything comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory
from .statistics import Interval, proportion_interval, ratio_interval

if TYPE_CHECKING:
    from ..rollouts import Rollout

BINS = 10
"""Of the histogram of relative positions."""

Histogram = dict[int, int]
"""Value -> how often it comes, in ascending order of values."""


@dataclass(frozen=True)
class Deleted:
    """One deletion of a walk, and what became of the states that it joins. A state is its string, however reached."""

    t: int
    """The deletion's index among the walk's actions."""
    landing: int
    """Completion tokens in the state that it led to."""
    tokens: tuple[int, ...]
    """What it removed, in the order of the text."""
    replaced_at: int | None
    """The index of the next action that appends in the state that it led to; None if the walk has none."""
    returned_at: int | None
    """The first later time at which the walk is in the state that it was taken in; None if it never is again."""


def deletions_of(trajectory: Trajectory, space: ActionSpace) -> list[Deleted]:
    """The deletions of a walk, in order. Raises InputError for an illegal one."""
    actions = trajectory.actions.tolist()
    visited, removed = _walk(actions, space)
    next_append: dict[int, int] = {}
    next_visit = {visited[-1]: len(actions)}
    found = []
    for t in reversed(range(len(actions))):
        state, after = visited[t], visited[t + 1]
        if t in removed:
            found.append(Deleted(t, *removed[t], next_append.get(after), next_visit.get(state)))
        else:
            next_append[state] = t
        next_visit[state] = t
    return found[::-1]


def _walk(actions: Sequence[int], space: ActionSpace) -> tuple[list[int], dict[int, tuple[int, tuple[int, ...]]]]:
    """The N + 1 states, equal numbers for equal strings; and for each deletion's time, its landing and what it removed.

    In time linear in N: a state's number is found by its parent's and its last token.
    """
    numbers: dict[tuple[int, int], int] = {}
    removed = {}
    tokens: list[int] = []
    standing = [0]  # the states of the prompt and of each prefix of the completion
    visited = [0]
    for t, action in enumerate(actions):
        space.check_legal(action, len(tokens), t)
        if action in space.by_token:
            landing = space.next_length(action, len(tokens))
            removed[t] = (landing, tuple(tokens[landing:]))
            del tokens[landing:], standing[landing + 1 :]
        else:
            tokens.append(action)
            standing.append(numbers.setdefault((standing[-1], action), len(numbers) + 1))
        visited.append(standing[-1])
    return visited, removed


@dataclass(frozen=True)
class DeletionStatistics:
    """How a policy deletes. Intervals are at 95%, over rollouts; None for the share or mean of nothing."""

    rollouts: int
    """How many were looked at."""
    actions: int
    """What they did, deletions and `<eos>` included."""
    deletions: int
    """How many of these were deletions."""
    rate: Interval | None
    """Share of actions that delete."""
    deleting: Interval
    """Share of rollouts with any deletion."""
    runs: Histogram
    """Deletions in an unbroken run of them -> runs."""
    mean_run: Interval | None
    """Mean number of deletions in a run."""
    removed: Histogram
    """Tokens that a deletion removes -> deletions."""
    mean_removed: Interval | None
    """Mean number of tokens that a deletion removes."""
    positions: Histogram
    """Completion tokens in the state that a deletion leads to -> deletions."""
    relative_positions: tuple[int, ...]
    """The same as a share of the final text's length, in BINS equal bins, the last of which also has what lies beyond
    the end of the final text."""
    at_boundary: Interval | None
    """Share of deletions that leave nothing of the completion: beyond it is the prompt, which is never deleted."""
    repeated: Interval | None
    """Share of deletions after which the next token appended in the state they led to is the first that they removed. A
    deletion of one token is then wasted; after a longer one, a later token may still differ."""
    returned: Interval | None
    """Share of deletions from a state that the same rollout reaches again: it has gone round in a loop."""
    loops: Histogram
    """Actions from such a deletion until the state is first reached again, the deletion included -> deletions."""


def deletion_statistics(rollouts: Sequence[Rollout], space: ActionSpace) -> DeletionStatistics:
    """How the policy that sampled `rollouts` deletes.

    Rollouts are independent, deletions within one are not: shares of deletions have the ratio bootstrap's intervals
    over rollouts (`ratio_interval`), the share of rollouts has Wilson's.

    Raises InputError if there are no rollouts, or for an illegal deletion.
    """
    if not rollouts:
        raise InputError("there is nothing to count deletions in; give at least one rollout")
    found = [deletions_of(rollout.trajectory, space) for rollout in rollouts]
    every = [deleted for walk in found for deleted in walk]
    runs = [run_lengths(walk) for walk in found]
    actions = [len(rollout.trajectory) for rollout in rollouts]
    counts = [len(walk) for walk in found]
    return DeletionStatistics(
        rollouts=len(rollouts),
        actions=sum(actions),
        deletions=len(every),
        rate=_ratio(counts, actions),
        deleting=proportion_interval(sum(count > 0 for count in counts), len(counts)),
        runs=_histogram(length for walk in runs for length in walk),
        mean_run=_ratio(counts, [len(walk) for walk in runs]),
        removed=_histogram(len(deleted.tokens) for deleted in every),
        mean_removed=_ratio([sum(len(deleted.tokens) for deleted in walk) for walk in found], counts),
        positions=_histogram(deleted.landing for deleted in every),
        relative_positions=_relative_positions(rollouts, found),
        at_boundary=_ratio([sum(deleted.landing == 0 for deleted in walk) for walk in found], counts),
        repeated=_ratio([_repeated(*pair) for pair in zip(rollouts, found, strict=True)], counts),
        returned=_ratio([sum(deleted.returned_at is not None for deleted in walk) for walk in found], counts),
        loops=_histogram(deleted.returned_at - deleted.t for deleted in every if deleted.returned_at is not None),
    )


def run_lengths(walk: Sequence[Deleted]) -> list[int]:
    """The lengths of the unbroken runs of a walk's deletions, in order."""
    # Within a run, time and the deletion's own index rise together.
    return [len(list(run)) for _, run in groupby(enumerate(walk), lambda pair: pair[1].t - pair[0])]


def _repeated(rollout: Rollout, walk: Sequence[Deleted]) -> int:
    """Deletions after which the first token that they removed is appended again."""
    actions = rollout.trajectory.actions
    replaced = [deleted for deleted in walk if deleted.replaced_at is not None]
    return sum(int(actions[deleted.replaced_at]) == deleted.tokens[0] for deleted in replaced)


def _relative_positions(rollouts: Sequence[Rollout], found: Sequence[Sequence[Deleted]]) -> tuple[int, ...]:
    """An empty final text is one that everything but its beginning lies beyond."""
    counts = Counter(
        min(BINS * deleted.landing // max(len(rollout.completion), 1), BINS - 1)
        for rollout, walk in zip(rollouts, found, strict=True)
        for deleted in walk
    )
    return tuple(counts[position] for position in range(BINS))


def _ratio(numerators: Sequence[int], denominators: Sequence[int]) -> Interval | None:
    return ratio_interval(numerators, denominators) if any(denominators) else None


def _histogram(values: Iterable[int]) -> Histogram:
    return dict(sorted(Counter(values).items()))
