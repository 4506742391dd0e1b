"""Accuracy of completions, with intervals, and what was spent and deleted on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..mdp import ActionSpace
from ..rollouts import uninterrupted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..rollouts import Rollout, RolloutEngine, SamplingConfig

MODES: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.0},
    "sampled_no_deletion": {"temperature": 1.0, "allow_backspace": False},
    "greedy": {"temperature": 0.0},
    "greedy_no_deletion": {"temperature": 0.0, "allow_backspace": False},
    "greedy_exclude": {"temperature": 0.0, "retry": "exclude"},
}
"""Ways of decoding that are compared, as changes to a `SamplingConfig`."""

IsCorrect = Callable[[str, str, str], bool]
"""`(prompt, the completion in the data, the model's completion) -> whether it is right`."""


@dataclass(frozen=True)
class Score:
    """What one way of decoding did on a set of questions."""

    accuracy: float
    """Share of questions whose completion ended and is right."""
    low: float
    """Lower end of the 95% Wilson interval of the accuracy."""
    high: float
    """Upper end of it."""
    n: int
    """Number of questions."""
    deletion_rate: float
    """Share of actions that are deletions."""
    mean_run: float
    """Mean number of deletions in an unbroken run of them; 0 without any."""
    actions: float
    """Mean number of actions per answer, deletions and `<eos>` included."""
    truncated: float
    """Share of completions that a limit cut before `<eos>`."""
    seconds: float
    """Wall time of the generation."""

    def as_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


def evaluate_mode(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, str]],
    is_correct: IsCorrect,
    config: SamplingConfig,
    mode: str,
) -> tuple[Score, list[Rollout]]:
    """Answer every row's `prompt` in one of `MODES` and compare with its `completion`.

    Raises InputError for an unknown mode, no rows, or rows without those columns.
    """
    if mode not in MODES:
        raise InputError(f"there is no mode '{mode}'; choose from {', '.join(MODES)}")
    prompts = tokenizer([row["prompt"] for row in checked_rows(rows)])["input_ids"]
    start = time.perf_counter()
    rollouts = uninterrupted(engine.rollout(prompts, replace(config, **MODES[mode])))
    seconds = time.perf_counter() - start
    correct = [
        rollout.trajectory.terminated
        and is_correct(row["prompt"], row["completion"], str(tokenizer.decode(list(rollout.completion))))
        for row, rollout in zip(rows, rollouts, strict=True)
    ]
    return score(rollouts, correct, engine.space, seconds), rollouts


def checked_rows(rows: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
    """The rows themselves. Raises InputError if there are none, or one lacks a prompt or a completion."""
    if not rows:
        raise InputError("there is nothing to evaluate; give at least one example")
    if not {"prompt", "completion"} <= set(rows[0]):
        raise InputError(f"evaluation needs the columns 'prompt' and 'completion', not {sorted(rows[0])}")
    for index, row in enumerate(rows):
        if not isinstance(row["prompt"], str) or not row["prompt"] or not isinstance(row["completion"], str):
            raise InputError(f"row {index} has no prompt or no completion; every row needs strings there")
    return rows


def score(rollouts: Sequence[Rollout], correct: Sequence[bool], space: ActionSpace, seconds: float) -> Score:
    """Sum up rollouts of which it is known whether they are right."""
    from scipy.stats import binomtest

    interval = binomtest(sum(correct), len(correct)).proportion_ci(0.95, "wilson")
    deleted = [np.isin(rollout.trajectory.actions, list(space.by_token)) for rollout in rollouts]
    # A run of deletions starts where one follows anything else.
    runs = sum(int(flags[:1].sum() + (flags[1:] & ~flags[:-1]).sum()) for flags in deleted)
    deletions = sum(int(flags.sum()) for flags in deleted)
    actions = sum(len(flags) for flags in deleted)
    return Score(
        accuracy=sum(correct) / len(correct),
        low=float(interval.low),
        high=float(interval.high),
        n=len(correct),
        deletion_rate=deletions / max(actions, 1),
        mean_run=deletions / max(runs, 1),
        actions=actions / len(rollouts),
        truncated=float(np.mean([not rollout.trajectory.terminated for rollout in rollouts])),
        seconds=seconds,
    )
