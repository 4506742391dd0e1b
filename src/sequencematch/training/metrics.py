"""What training logs about deletions, rollouts and values, beside the objective's own components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..mdp import ActionSpace
from ..objectives import Steps
from ..rollouts import Rollout
from ..tree import TreeBatch


class Means:
    """Weighted means of what is recorded under each name, over micro-batches, steps and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def record(self, metrics: dict[str, Any], weight: float = 1.0) -> None:
        """Add values, each with a weight."""
        for name, value in metrics.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += weight * float(value)
            total[1] += weight

    def take(self) -> dict[str, tuple[float, float]]:
        """The sums of values and of weights by name; recording starts anew."""
        sums, self._sums = self._sums, {}
        return {name: (total, weight) for name, (total, weight) in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is recorded and not taken yet."""
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._sums = state["sums"]

    @staticmethod
    def of(parts: Sequence[dict[str, tuple[float, float]]]) -> dict[str, float]:
        """The means over all that was taken, on each of several ranks."""
        names = sorted({name for part in parts for name in part})
        sums = {name: np.sum([part[name] for part in parts if name in part], axis=0) for name in names}
        return {name: float(total / weight) for name, (total, weight) in sums.items() if weight}


def rollout_metrics(rollouts: Sequence[Rollout], space: ActionSpace) -> dict[str, float]:
    """How the policy deletes and where its completions end.

    `backspace/rate`, the share of actions that delete; `backspace/mean_run`, how many deletions follow one another;
    `backspace/at_boundary`, the share of deletions that leave nothing of the completion: beyond it is the prompt,
    which is never deleted; `completions/...`, mean length, mean number of actions and share that a limit cut.
    """
    walks = [_Deletions.of(rollout, space) for rollout in rollouts]
    actions = sum(len(rollout.trajectory) for rollout in rollouts)
    deletions = sum(walk.count for walk in walks)
    return {
        "backspace/rate": deletions / max(actions, 1),
        "backspace/mean_run": deletions / max(sum(walk.runs for walk in walks), 1),
        "backspace/at_boundary": sum(walk.emptied for walk in walks) / max(deletions, 1),
        "completions/mean_length": float(np.mean([len(rollout.completion) for rollout in rollouts])),
        "completions/mean_actions": actions / len(rollouts),
        "completions/truncated": float(np.mean([not rollout.trajectory.terminated for rollout in rollouts])),
    }


class _Deletions:
    """One rollout's deletions, counted."""

    def __init__(self, count: int, runs: int, emptied: int) -> None:
        self.count = count
        self.runs = runs
        """Unbroken sequences of them."""
        self.emptied = emptied
        """Those that led back to the prompt."""

    @classmethod
    def of(cls, rollout: Rollout, space: ActionSpace) -> _Deletions:
        count = runs = emptied = length = 0
        deleting = False
        for action in rollout.trajectory.actions.tolist():
            length = space.next_length(action, length)
            starts = not deleting
            deleting = action in space.by_token
            if deleting:
                count += 1
                runs += starts
                emptied += length == 0
        return cls(count, runs, emptied)


def detection(batch: TreeBatch, steps: Steps, space: ActionSpace) -> dict[str, Tensor]:
    """`backspace/after_wrong` and `backspace/after_right`: the means of `deletion_probabilities`.

    A model that cannot tell the two apart has no use for its deletions. Only what the batch has states for; nothing at
    all without deletion actions.
    """
    if not space.deletions:
        return {}
    found = zip(("wrong", "right"), deletion_probabilities(batch, steps, space), strict=True)
    return {f"backspace/after_{kind}": values.mean() for kind, values in found if len(values)}


@torch.no_grad()
def deletion_probabilities(batch: TreeBatch, steps: Steps, space: ActionSpace) -> tuple[Tensor, Tensor]:
    """pi(deletion | s) after wrong tokens that noise has planted, and after right ones.

    Args:
        batch: the trees.
        steps: all S steps of the batch, with `deletes`.
        space: which actions delete.

    Returns:
        float [W], at the states where the expert deletes, and float [R], at the states on the expert's own way that
        have something to delete. States count as often as trajectories leave them.
    """
    assert steps.deletes is not None
    final = batch.final[batch.trajectory]
    on_the_way = (batch.state <= final) & (final < batch.exit[batch.state])
    expert = ~batch.is_policy[batch.trajectory]
    tokens = torch.tensor(list(space.by_token), device=batch.action.device, dtype=batch.action.dtype)
    deleted = torch.isin(batch.action, tokens)
    nonempty = batch.completion_length[batch.state] > 0
    return steps.deletes[expert & deleted], steps.deletes[expert & ~deleted & on_the_way & nonempty]


@torch.no_grad()
def value_metrics(steps: Steps) -> dict[str, Tensor]:
    """`objective/value_mean` and `objective/value_max`: the soft value V(s), whose drift announces a divergence."""
    return {"objective/value_mean": steps.v.mean(), "objective/value_max": steps.v.abs().max()}
