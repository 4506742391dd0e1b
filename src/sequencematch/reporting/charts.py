"""The report's charts as numbers: where every dot, line and tick goes. The template draws them as inline SVG.

Horizontal positions are percentages, so that a chart fills any width while its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .tables import MODE_NAMES, Row, main_modes

MAX_POINTS = 120
"""A longer curve is averaged down to about so many points."""

LINE_SPACE = 1000
"""Lines of curves are drawn in a square of this side, which the template stretches."""

_SERIES: tuple[tuple[str, str, tuple[tuple[str, bool], ...]], ...] = (
    (
        "Negative log-likelihood per action",
        "Of each arm's own demonstrations; lower is better.",
        (("objective/bc", False),),
    ),
    ("Training loss", "Each arm has its own objective, so levels do not compare across arms.", (("loss", False),)),
    (
        "Implied reward",
        "Solid: actions of the demonstrations; dashed: actions of the policy's rollouts.",
        (("objective/expert_reward_mean", False), ("objective/policy_reward_mean", True)),
    ),
    ("Deletion rate in training", "Share of deletions among the actions of rollouts.", (("backspace/rate", False),)),
)


@dataclass(frozen=True)
class Whisker:
    """An accuracy with its interval; positions are percentages of the width."""

    colour: int
    name: str
    text: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyPanel:
    """The accuracies of all arms under one way of decoding."""

    title: str
    whiskers: list[Whisker]

    @property
    def summary(self) -> str:
        """The panel in words, for those who do not see it."""
        return f"{self.title}: " + "; ".join(f"{whisker.name} {whisker.text}" for whisker in self.whiskers)


@dataclass(frozen=True)
class Line:
    """One curve: points in a square of side `LINE_SPACE`, ready for an SVG polyline."""

    colour: int
    dashed: bool
    points: str


@dataclass
class CurvePanel:
    """The curves of all arms for one quantity; ticks are (percentage, label)."""

    title: str
    note: str
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    colours: list[tuple[int, str]] = field(default_factory=list)
    """Colour and name of the arms that have a curve."""


def accuracy_panels(rows: list[Row]) -> list[AccuracyPanel]:
    """Dots and whiskers, one panel per way of decoding."""
    panels = []
    for mode in main_modes(rows):
        whiskers = [
            Whisker(
                colour,
                row.name,
                f"{accuracy.value:.3f} {accuracy.interval}",
                accuracy_position(accuracy.value),
                accuracy_position(accuracy.low),
                accuracy_position(accuracy.high),
            )
            for colour, row in enumerate(rows)
            if (accuracy := row.accuracies[mode])
        ]
        panels.append(AccuracyPanel(MODE_NAMES[mode], whiskers))
    return panels


def accuracy_position(accuracy: float) -> float:
    """Where an accuracy from 0 to 1 stands, as a percentage with a margin for the dots at the ends."""
    return round(2 + 96 * accuracy, 2)


def curve_panels(arms: Mapping[str, Mapping[str, Any]], rows: list[Row]) -> list[CurvePanel]:
    """Learning curves, one panel per quantity that any arm recorded."""
    panels = []
    for title, note, keys in _SERIES:
        curves = [
            (colour, dashed, points)
            for colour, result in enumerate(arms.values())
            for key, dashed in keys
            if len(points := _points(result.get("curve") or [], key)) > 1
        ]
        if curves:
            names = [(colour, rows[colour].name) for colour in sorted({colour for colour, _, _ in curves})]
            panels.append(_curve_panel(CurvePanel(title, note, colours=names), curves))
    return panels


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that begin at or below `low` and end at or above `high`."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _curve_panel(panel: CurvePanel, curves: Sequence[tuple[int, bool, list[tuple[float, float]]]]) -> CurvePanel:
    xs = [x for _, _, points in curves for x, _ in points]
    ys = [y for _, _, points in curves for _, y in points]
    y_marks = ticks(min(ys), max(ys))
    x_low, x_high = min(0.0, *xs), max(xs)
    x_marks = [mark for mark in ticks(x_low, x_high) if x_low <= mark <= x_high + 0.03 * (x_high - x_low)]
    x_high = max([x_high, *x_marks])

    def x_share(x: float) -> float:
        return (x - x_low) / ((x_high - x_low) or 1.0)

    def y_share(y: float) -> float:
        return (y_marks[-1] - y) / (y_marks[-1] - y_marks[0])

    panel.x_ticks = [(round(100 * x_share(mark), 2), f"{mark:,.10g}") for mark in x_marks]
    panel.y_ticks = [(round(100 * y_share(mark), 2), f"{mark:.6g}".replace("-", "−")) for mark in y_marks]
    panel.lines = [
        Line(
            colour,
            dashed,
            " ".join(f"{x_share(x) * LINE_SPACE:.1f},{y_share(y) * LINE_SPACE:.1f}" for x, y in points),
        )
        for colour, dashed, points in curves
    ]
    return panel


def _points(curve: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The finite values of `key` by step, averaged in bins where there are too many."""
    points = [
        (float(entry["step"]), float(entry[key]))
        for entry in curve
        if entry.get("step") is not None and entry.get(key) is not None and math.isfinite(float(entry[key]))
    ]
    size = math.ceil(len(points) / MAX_POINTS)
    if size < 2:
        return points
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]
