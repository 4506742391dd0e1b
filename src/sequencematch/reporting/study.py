"""A study's results as the report reads them; `sequencematch.reporting.loading` reads them from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .wording import metric_of, plain

if TYPE_CHECKING:
    import pandas

Key = tuple[str, str, str]
"""`(cell, decoding, metric)`."""

SIGNIFICANT = 0.05
"""Largest adjusted p value of a difference that the report takes for one."""

FATES = ("kept", "deleted", "deletion", "end")
"""What can become of a transcript's piece; see `sequencematch.evaluation.transcripts`."""


@dataclass(frozen=True)
class Cell:
    """One setting of one arm."""

    name: str
    arm: str
    arm_title: str
    factors: Mapping[str, Any]
    """What varies, and this cell's values; empty for the arm as it is."""

    @property
    def title(self) -> str:
        """As people read it: the arm, then what varies."""
        return ", ".join([self.arm_title, *(f"{plain(name)} {plain(value)}" for name, value in self.factors.items())])


@dataclass(frozen=True)
class Estimate:
    """A metric's mean and its 95% interval, over seeds, or over questions if there is one seed."""

    mean: float
    low: float | None
    """None without an interval, as is `high`."""
    high: float | None
    seeds: int

    @property
    def ends(self) -> tuple[float, float]:
        """The interval, or the mean twice."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Comparison:
    """The difference of a cell from the baseline, with its 95% interval and adjusted p value, where there are any."""

    difference: float
    low: float | None
    high: float | None
    p_adjusted: float | None

    @property
    def direction(self) -> int:
        """1 if significantly above the baseline, -1 if below, 0 if neither."""
        if self.p_adjusted is None or self.p_adjusted >= SIGNIFICANT or self.difference == 0:
            return 0
        return 1 if self.difference > 0 else -1


@dataclass(frozen=True)
class TrainingRun:
    """What one cell's training took with one seed, and its learning curve."""

    cell: str
    seed: int
    steps: float | None
    seconds: float | None
    curve: list[dict[str, float]]
    """What was logged, `step` included: name -> finite number."""


@dataclass(frozen=True)
class Piece:
    """One action of a completion, its implicit reward r(s, a) and the value V(s) of the state that it was taken in."""

    text: str
    fate: str
    """One of FATES."""
    reward: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Completion:
    """One completion, action by action."""

    cell: str
    seed: int
    decoding: str
    prompt: str
    expected: str | None
    text: str
    """What survived."""
    correct: bool | None
    """None where there is no right and wrong."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class StudyResults:
    """All results of one study."""

    title: str
    description: str
    baseline: Cell
    """What the others are compared with."""
    budget: str
    """What each run had, in words; empty if unknown."""
    seeds: tuple[int, ...]
    decodings: Mapping[str, Mapping[str, Any]]
    """Way of decoding -> its options; the first is the main one."""
    cells: tuple[Cell, ...]
    """The baseline first, then in the study's order."""
    metrics: tuple[str, ...]
    """The main metrics; the first is the main one."""
    questions: int | None
    facts: Mapping[str, Mapping[str, Any]]
    """What it was made with: heading -> name -> value."""
    date: str
    seconds: float | None
    config: Mapping[str, Any]
    values: Mapping[Key, Mapping[int, float]]
    """Each seed's value."""
    estimates: Mapping[Key, Estimate]
    comparisons: Mapping[Key, Comparison]
    runs: tuple[TrainingRun, ...] = ()
    answers: pandas.DataFrame | None = None
    """One row for each question, cell, seed and way of decoding."""
    completions: tuple[Completion, ...] = ()

    @property
    def metric(self) -> str:
        """The main metric's name."""
        return self.metrics[0]

    @property
    def decoding(self) -> str:
        """The main way of decoding."""
        return next(iter(self.decodings))

    @property
    def better(self) -> int:
        """1 if more of the main metric is better, -1 if less is, 0 if neither is known to be."""
        return metric_of(self.metric).better

    def estimate(self, cell: Cell, decoding: str, metric: str | None = None) -> Estimate | None:
        """A metric, the main one if none is named, of a cell under a way of decoding; None if not measured."""
        return self.estimates.get((cell.name, decoding, metric or self.metric))

    def comparison(self, cell: Cell, decoding: str, metric: str | None = None) -> Comparison | None:
        """How it compares with the baseline's; None for the baseline itself, or if not compared."""
        return self.comparisons.get((cell.name, decoding, metric or self.metric))

    def measured_decodings(self) -> list[str]:
        """The ways of decoding for which any cell has the main metric."""
        return [name for name in self.decodings if any(self.estimate(cell, name) for cell in self.cells)]

    def training_seconds(self, cell: Cell) -> float | None:
        """Mean wall time of a cell's training over seeds; None if unknown."""
        return _mean([run.seconds for run in self.runs if run.cell == cell.name])

    def training_steps(self, cell: Cell) -> float | None:
        """Mean number of a cell's optimizer steps over seeds; None if unknown."""
        return _mean([run.steps for run in self.runs if run.cell == cell.name])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
