"""What training logs about deletions, rollouts and values, beside the objective's own components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.backspace import deletions_of, run_lengths
from ..evaluation.planted import wrong_and_right
from ..mdp import ActionSpace, Trajectory, replay
from ..objectives import Steps
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


def rollout_metrics(trajectories: Sequence[Trajectory], space: ActionSpace) -> dict[str, float]:
    """How the policy deletes and where its completions end.

    `backspace/rate`, the share of actions that delete; `backspace/mean_run`, how many deletions follow one another;
    `backspace/at_boundary`, the share of deletions that leave nothing of the completion: beyond it is the prompt,
    which is never deleted; `completions/...`, mean length, mean number of actions and share that a limit cut.
    """
    walks = [deletions_of(trajectory, space) for trajectory in trajectories]
    runs = sum(len(run_lengths(walk)) for walk in walks)
    actions = sum(map(len, trajectories))
    lengths = [len(replay(trajectory, space).completion) for trajectory in trajectories]
    landings = [deleted.landing for walk in walks for deleted in walk]
    return {
        "backspace/rate": len(landings) / max(actions, 1),
        "backspace/mean_run": len(landings) / max(runs, 1),
        "backspace/at_boundary": landings.count(0) / max(len(landings), 1),
        "completions/mean_length": float(np.mean(lengths)),
        "completions/mean_actions": actions / len(trajectories),
        "completions/truncated": float(np.mean([not trajectory.terminated for trajectory in trajectories])),
    }


@torch.no_grad()
def detection(batch: TreeBatch, steps: Steps, space: ActionSpace) -> dict[str, Tensor]:
    """`backspace/after_wrong` and `backspace/after_right`: the means of pi(deletion | s) after wrong and right tokens.

    A model that cannot tell the two apart has no use for its deletions. Only what the batch has states for, which count
    as often as trajectories leave them; nothing at all without deletion actions.
    """
    if not space.deletions:
        return {}
    assert steps.deletes is not None
    found = zip(("wrong", "right"), wrong_and_right(batch, space), strict=True)
    return {f"backspace/after_{kind}": steps.deletes[states].mean() for kind, states in found if bool(states.any())}


@torch.no_grad()
def value_metrics(steps: Steps) -> dict[str, Tensor]:
    """`objective/value_mean` and `objective/value_max`: the soft value V(s), whose drift announces a divergence."""
    return {"objective/value_mean": steps.v.mean(), "objective/value_max": steps.v.abs().max()}
