"""What can be measured of a trained model: each way of decoding it, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..models import action_space, load_model, load_tokenizer, prepare_model
from ..models.prepare import core_of
from ..noise import ModelNoise, NoiseSource, TaskNoise, UniformNoise
from ..rollouts import ENGINES, HFRolloutEngine, Rollout, SamplingConfig
from .accuracy import Answers, answer
from .backspace import deletion_statistics
from .decodings import Decoding
from .diversity import text_metrics
from .mauve import FEWEST_TEXTS, equal_lengths, featurize, mauve_score
from .perplexity import data_perplexity
from .planted import planted_detection
from .questions import Questions
from .replacements import improved
from .transcripts import transcribe
from .values import walk_values

if TYPE_CHECKING:
    from ..tasks import Task

Measured = tuple[dict[str, float], dict[str, list[float]]]
"""Metrics, and their intervals at 95% over questions."""

METRICS = {
    "accuracy": ("accuracy",),
    "text": ("entropy", "diversity", "repetition", "distinct_1", "distinct_2"),
    "mauve": ("mauve",),
    "perplexity": ("perplexity", "perplexity_no_deletion"),
    "deletions": (
        "deletion_rate",
        "deleting",
        "mean_run",
        "mean_removed",
        "at_boundary",
        "repeated",
        "returned",
        "improved",
    ),
    "detection": ("deletes_wrong", "deletes_right", "precision", "auroc"),
}
"""What can be measured -> the numbers that it gives."""

PLANTED = ("uniform", "task", "checkpoint")


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and on what. Raises InputError for what does not exist."""

    metrics: tuple[str, ...] = ("accuracy",)
    """Some of METRICS; the first is the main one."""
    questions: int | None = None
    """How many of the held-out questions or texts, from the beginning; None takes all."""
    prompt_tokens: int | None = None
    """How many tokens of each held-out text are the prompt; None for data that has prompts."""
    mauve_length: int = 128
    """Tokens of completion that MAUVE looks at: shorter ones are left out, on both sides."""
    featurizer: str | None = None
    """Folder or id of the model whose features MAUVE compares; None is the checkpoint that all arms start from."""
    planted: str = "uniform"
    """Which mistakes detection plants, one at every state, the same in all that is compared: `uniform` tokens, the
    `task`'s own, or what the `checkpoint` that all arms start from would wrongly write there."""
    transcripts: int = 12
    """Completions of each way of decoding to keep, action by action."""
    engine: str = "hf"
    """What samples: `hf`, this library, or `vllm`, which has no beam or contrastive search."""

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise InputError(f"there is no metric '{metric}'; choose from {', '.join(METRICS)}")
        if self.planted not in PLANTED:
            raise InputError(f"planted mistakes are one of {', '.join(PLANTED)}, not '{self.planted}'")
        if self.engine not in ENGINES:
            raise InputError(f"the engine is one of {', '.join(ENGINES)}, not '{self.engine}'")
        if not self.metrics:
            raise InputError(f"there is nothing to measure; name metrics, from {', '.join(METRICS)}")

    @classmethod
    def of(cls, given: Any) -> Evaluation:
        """From a mapping. Raises InputError for an unknown key."""
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or set(given) - set(known):
            raise InputError(f"evaluation is a mapping with {', '.join(known)}, not {given!r}")
        return cls(**{**given, "metrics": tuple(given.get("metrics", cls.metrics))})

    def as_dict(self) -> dict[str, Any]:
        """As plain values. What samples is named only if it is not this library: an engine changes no distribution."""
        found = asdict(self)
        return found if self.engine != "hf" else {name: value for name, value in found.items() if name != "engine"}

    @property
    def main(self) -> list[str]:
        """The numbers that the report shows first."""
        return [number for metric in self.metrics for number in METRICS[metric]]


@dataclass(frozen=True)
class Subject:
    """A trained model and what it is asked."""

    engine: HFRolloutEngine
    tokenizer: Any
    questions: Questions
    config: SamplingConfig
    task: Task | None = None
    """The task that the questions are from, if they are."""
    start: Path | None = None
    """The checkpoint that it started from, if that is known."""
    gamma: float | None = None
    """The discount that it was trained with, where its values mean anything."""


def measure_decoding(subject: Subject, decoding: Decoding, evaluation: Evaluation) -> dict[str, Any]:
    """Everything about one way of decoding.

    Returns:
        `metrics` and `intervals` by name; `histograms` of deletions; `questions`: lists with an entry for each;
        `transcripts` of the first ones.
    """
    found = answer(subject.engine, subject.tokenizer, subject.questions, subject.config, decoding)
    numbers = found.score.as_dict()
    low, high, _ = (numbers.pop(name) for name in ("low", "high", "n"))
    intervals = {"accuracy": [low, high]}
    histograms: dict[str, Any] = {}
    completions = [list(rollout.completion) for rollout in found.completions.rollouts]
    numbers["length"] = float(np.mean([len(ids) for ids in completions]))
    if "accuracy" not in evaluation.metrics:
        del numbers["accuracy"], intervals["accuracy"]
    if "text" in evaluation.metrics:
        numbers |= text_metrics(completions)
    if "mauve" in evaluation.metrics:
        numbers |= _mauve(subject, completions, evaluation)
    if "deletions" in evaluation.metrics and subject.engine.space.deletions:
        more, ends, histograms = _deletions(subject, found.completions.rollouts)
        numbers, intervals = numbers | more, intervals | ends
    scored = "accuracy" in evaluation.metrics
    return {
        "metrics": numbers,
        "intervals": intervals,
        "histograms": histograms,
        "questions": _by_question(found, subject, scored),
        "transcripts": _transcripts(found, subject, evaluation.transcripts, scored),
    }


def measure_model(subject: Subject, evaluation: Evaluation) -> dict[str, Any]:
    """`metrics` and `intervals` that belong to the model, however it is decoded."""
    model, space, examples = subject.engine.model, subject.engine.space, subject.questions.examples
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    if "perplexity" in evaluation.metrics:
        found = data_perplexity(model, space, examples)
        metrics |= {name: found[name] for name in METRICS["perplexity"]}
        intervals |= found["intervals"]
    if "detection" in evaluation.metrics and space.deletions:
        # The same mistakes in all models that are compared.
        detection = planted_detection(model, space, examples, _planted(subject, evaluation), np.random.default_rng(0))
        sampled = detection.sampled
        metrics |= {
            "deletes_wrong": sampled.recall.estimate,
            "deletes_right": sampled.false_alarm.estimate,
            "precision": sampled.precision(detection.planted_rate),
            "auroc": detection.auroc,
        }
        for name, interval in (("deletes_wrong", sampled.recall), ("deletes_right", sampled.false_alarm)):
            intervals[name] = [interval.low, interval.high]
    return {"metrics": metrics, "intervals": intervals}


def _planted(subject: Subject, evaluation: Evaluation) -> NoiseSource:
    if evaluation.planted == "task":
        if subject.task is None:
            raise InputError("planted: task needs a task; name one, or plant uniform mistakes")
        return TaskNoise(subject.task, subject.tokenizer, 1.0)
    if evaluation.planted == "checkpoint":
        if subject.start is None:
            raise InputError("planted: checkpoint needs a checkpoint to start from; plant uniform mistakes")
        checkpoint = _checkpoint(subject, subject.start)
        # It may have fewer actions than the model, and its own are what it can wrongly write.
        return ModelNoise(checkpoint, action_space(checkpoint, load_tokenizer(str(subject.start))), 1.0)
    space = subject.engine.space
    return UniformNoise(replace(space, vocab_size=min(len(subject.tokenizer), space.vocab_size)), 1.0)


def _checkpoint(subject: Subject, folder: Path) -> Any:
    """The checkpoint that the model started from, where the model is, and with the attention that it has."""
    model: Any = load_model(str(folder))
    prepare_model(
        model.to(subject.engine.model.device), getattr(core_of(subject.engine.model), "tree_attention", "auto")
    )
    return model


def _deletions(
    subject: Subject, rollouts: list[Rollout]
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, Any]]:
    """Metrics, intervals and histograms of deletions; what there is none of is left out."""
    space = subject.engine.space
    found = deletion_statistics(rollouts, space)
    named = {name: getattr(found, name) for name in ("mean_run", "mean_removed", "at_boundary", "repeated", "returned")}
    # The checkpoint judges where there is one: it has not learned to delete. Or else the policy itself.
    judge = subject.engine.model if subject.start is None else _checkpoint(subject, subject.start)
    share = improved(rollouts, judge, space).share
    named |= {"deletion_rate": found.rate, "deleting": found.deleting, "improved": share}
    known = {name: interval for name, interval in named.items() if interval is not None}
    histograms = {
        name: getattr(found, name) for name in ("runs", "removed", "positions", "relative_positions", "loops")
    }
    return (
        {name: interval.estimate for name, interval in known.items()},
        {name: [interval.low, interval.high] for name, interval in known.items()},
        histograms,
    )


def _transcripts(found: Answers, subject: Subject, count: int, scored: bool) -> list[dict[str, Any]]:
    rollouts = found.completions.rollouts[:count]
    space, gamma = subject.engine.space, subject.gamma
    values = walk_values(subject.engine.model, space, rollouts, gamma) if gamma and rollouts else [None] * len(rollouts)
    items = zip(subject.questions.examples, rollouts, values, found.texts, found.correct, strict=False)
    return [
        {
            "prompt": example.prompt,
            "expected": example.completion,
            "completion": text,
            "correct": bool(correct) if scored else None,
            "pieces": _pieces(rollout, value, subject),
        }
        for example, rollout, value, text, correct in items
    ]


def _pieces(rollout: Rollout, values: Any, subject: Subject) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = [
        dict(piece)
        for piece in transcribe(rollout.trajectory.actions.tolist(), subject.tokenizer, subject.engine.space)
    ]
    if values is not None:
        for piece, reward, value in zip(pieces, *values, strict=True):
            piece |= {"reward": round(float(reward), 3), "value": round(float(value), 3)}
    return pieces


def _mauve(subject: Subject, completions: list[list[int]], evaluation: Evaluation) -> dict[str, float]:
    folder = evaluation.featurizer or subject.start
    if folder is None:
        raise InputError("MAUVE needs a model to take features from; name a folder or id as featurizer")
    end = subject.engine.space.eos_token_id
    references = [[id for id in example.completion_ids if id != end] for example in subject.questions.examples]
    length = evaluation.mauve_length
    generated, reference = (sum(len(ids) >= length for ids in side) for side in (completions, references))
    # What is too short has no part in MAUVE, so its share belongs beside it.
    beside = {"mauve_texts": min(generated, reference), "mauve_too_short": 1 - generated / len(completions)}
    if generated < FEWEST_TEXTS <= reference:
        return beside  # a model that ends its texts early is no error, but has no MAUVE
    texts = equal_lengths(completions, references, length)
    model: Any = load_model(str(folder))
    model.to(subject.engine.model.device)
    found = mauve_score(featurize(texts.generated, model), featurize(texts.reference, model))
    return {"mauve": found.mean, **beside}


def _by_question(found: Answers, subject: Subject, scored: bool) -> dict[str, list]:
    rollouts, deletions = found.completions.rollouts, list(subject.engine.space.by_token)
    return {
        "score": [float(correct) if scored else None for correct in found.correct],
        "actions": found.completions.actions.tolist(),
        "deletions": [int(np.isin(rollout.trajectory.actions, deletions).sum()) for rollout in rollouts],
        "length": [len(rollout.completion) for rollout in rollouts],
        "group": subject.questions.groups,
    }
