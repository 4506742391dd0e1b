"""The report's charts as numbers: where every dot, line and tick goes. The template draws them as inline SVG.

Positions are percentages, so that a chart fills any width while its text keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .axes import Axis, metric_axis
from .rows import Row
from .study import StudyResults
from .styles import Style
from .wording import decoding_title, metric_of, number

LINE_SPACE = 1000
"""Lines are drawn in a square of this side, which the template stretches."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line, or a filled band: points in a square of side `LINE_SPACE`, ready for SVG."""

    style: Style
    points: str
    kind: str = "curve"
    """`curve`, `band` (a closed area), `thin` or `frontier`."""


@dataclass(frozen=True)
class Mark:
    """A marker at percentages of width and height, with the text that says what it is."""

    style: Style
    x: float
    y: float
    text: str


@dataclass
class Chart:
    """Lines and markers over two axes; ticks are (percentage, label)."""

    title: str
    note: str
    x_axis: Axis
    y_axis: Axis
    x_label: str
    summary: str = ""
    """The chart in words, for those who do not see it."""
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    legend: list[tuple[Style, str]] = field(default_factory=list)
    """The chart's own legend; empty where one stands above several charts."""

    @property
    def x_ticks(self) -> tuple[tuple[float, str], ...]:
        """Ticks from the left."""
        return self.x_axis.ticks

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Ticks from the top."""
        return [(round(100 - at, 2), label) for at, label in self.y_axis.ticks]

    def draw(self, style: Style, points: Iterable[Point], kind: str = "curve") -> None:
        """Add a line through points, given as they are on the axes."""
        scale = LINE_SPACE / 100
        places = ((self.x_axis.at(x), 100 - self.y_axis.at(y)) for x, y in points)
        self.lines.append(Line(style, " ".join(f"{scale * x:.1f},{scale * y:.1f}" for x, y in places), kind))

    def band(self, style: Style, low: Sequence[Point], high: Sequence[Point]) -> None:
        """Add the area between two lines."""
        self.draw(style, [*low, *reversed(high)], "band")

    def mark(self, style: Style, point: Point, text: str) -> None:
        """Add a marker."""
        x, y = point
        self.marks.append(Mark(style, round(self.x_axis.at(x), 2), round(100 - self.y_axis.at(y), 2), text))


@dataclass(frozen=True)
class Whisker:
    """A cell's mean, its interval and every seed; positions are percentages of the width."""

    style: Style
    name: str
    value: str
    text: str
    """The value with its interval."""
    at: float
    low: float
    high: float
    seeds: list[float]


@dataclass(frozen=True)
class WhiskerPanel:
    """The main metric of all cells under one way of decoding; ticks are (percentage, label)."""

    title: str
    ticks: list[tuple[float, str]]
    whiskers: list[Whisker]


def whisker_panels(study: StudyResults, rows: Sequence[Row]) -> list[WhiskerPanel]:
    """Dots and whiskers, one panel for each way of decoding, on one axis."""
    decodings = study.measured_decodings()
    cells = [row.cell for row in rows]
    estimates = [found for cell in cells for name in decodings if (found := study.estimate(cell, name))]
    if not estimates:
        return []
    seeds = [value for cell in cells for name in decodings for value in _seeds(study, cell.name, name)]
    axis = metric_axis(study.metric, [*seeds, *(end for estimate in estimates for end in estimate.ends)])

    def at(value: float) -> float:
        # A margin for the dots at the ends.
        return round(2 + 0.96 * axis.at(value), 2)

    marks = [(round(2 + 0.96 * place, 2), label) for place, label in axis.ticks]
    panels = []
    for decoding in decodings:
        whiskers = []
        for row in rows:
            estimate, score = study.estimate(row.cell, decoding), row.scores[decoding]
            if estimate and score:
                low, high = estimate.ends
                whisker = Whisker(
                    style=row.style,
                    name=row.cell.title,
                    value=score.value,
                    text=f"{score.value} {score.interval}".strip(),
                    at=at(estimate.mean),
                    low=at(low),
                    high=at(high),
                    seeds=[at(value) for value in _seeds(study, row.cell.name, decoding)],
                )
                whiskers.append(whisker)
        panels.append(WhiskerPanel(decoding_title(decoding), marks, whiskers))
    return panels


def metric_label(study: StudyResults) -> str:
    """The main metric's name."""
    return metric_of(study.metric).title


def estimate_text(study: StudyResults, mean: float, low: float | None, high: float | None) -> str:
    """The main metric's value with its interval."""
    ends = "" if low is None or high is None else f" [{number(study.metric, low)}, {number(study.metric, high)}]"
    return number(study.metric, mean) + ends


def _seeds(study: StudyResults, cell: str, decoding: str) -> list[float]:
    """Every seed's value; none where there is only one, which is the mean itself."""
    found = list(study.values.get((cell, decoding, study.metric), {}).values())
    return found if len(found) > 1 else []
