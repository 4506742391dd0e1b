"""Accuracy of completions, with intervals, and what was spent and deleted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..mdp import ActionSpace
from .backspace import deletions_of, run_lengths
from .decodings import Completions, Decoding
from .questions import Questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..rollouts import HFRolloutEngine, SamplingConfig


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
    """Mean number of actions spent on an answer, deletions and `<eos>` included."""
    truncated: float
    """Share of completions that a limit cut before `<eos>`."""
    seconds: float
    """Wall time of the generation."""

    def as_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """The completions of a set of questions under one way of decoding."""

    completions: Completions
    """What was sampled."""
    texts: list[str]
    """The completions' surviving text."""
    correct: list[bool]
    """Whether each ended and is right."""
    score: Score
    """All of them in numbers."""


def answer(
    engine: HFRolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    config: SamplingConfig,
    decoding: Decoding,
) -> Answers:
    """Complete every question's prompt and have the completion judged."""
    completions = decoding.decode(engine, [example.prompt_ids for example in questions.examples], config)
    texts = [str(tokenizer.decode(list(rollout.completion))) for rollout in completions.rollouts]
    correct = [
        rollout.trajectory.terminated and questions.is_correct(example.prompt, example.completion, text)
        for example, rollout, text in zip(questions.examples, completions.rollouts, texts, strict=True)
    ]
    return Answers(completions, texts, correct, score(completions, correct, engine.space))


def score(completions: Completions, correct: Sequence[bool], space: ActionSpace) -> Score:
    """Sum up completions of which it is known whether they are right."""
    from scipy.stats import binomtest

    rollouts = completions.rollouts
    interval = binomtest(sum(correct), len(correct)).proportion_ci(0.95, "wilson")
    walks = [deletions_of(rollout.trajectory, space) for rollout in rollouts]
    runs = sum(len(run_lengths(walk)) for walk in walks)
    deletions = sum(map(len, walks))
    actions = sum(len(rollout.trajectory) for rollout in rollouts)
    return Score(
        accuracy=sum(correct) / len(correct),
        low=float(interval.low),
        high=float(interval.high),
        n=len(correct),
        deletion_rate=deletions / max(actions, 1),
        mean_run=deletions / max(runs, 1),
        actions=float(completions.actions.mean()),
        truncated=float(np.mean([not rollout.trajectory.terminated for rollout in rollouts])),
        seconds=completions.seconds,
    )
