"""The report's main table, and the table of everything that was measured."""

from __future__ import annotations

from dataclasses import dataclass

from .study import Cell, Comparison, StudyResults
from .styles import Style, styles
from .wording import ABSENT, METRICS, difference, duration, interval, metric_of, number, p_value

MOST_ROWS = 12
"""With more cells than this, the main table has one for each arm."""


@dataclass(frozen=True)
class Score:
    """A metric's value under one way of decoding, as text."""

    value: str
    interval: str
    """Empty without one."""
    short_interval: str
    """The same in few characters."""
    direction: int
    """1 if significantly above the baseline, -1 if below, 0 if neither."""
    verdict: str
    """`better`, `worse` or, where neither is known or significant, empty."""
    comparison: str
    """The difference from the baseline in words; empty for the baseline itself."""


@dataclass(frozen=True)
class Row:
    """One cell's line of the main table."""

    cell: Cell
    style: Style
    scores: dict[str, Score | None]
    """By way of decoding; None where the cell has no such measurement."""
    deletion_rate: str
    """Under the main way of decoding, as are `actions`."""
    actions: str
    time: str
    """Of training, as are `steps`; means over seeds."""
    seconds: str
    """The same in seconds."""
    steps: str


def main_cells(study: StudyResults) -> list[Cell]:
    """The cells of the main table: all, or each arm as it is where there are more than `MOST_ROWS`.

    An arm without a cell of no factors is represented by its first cell.
    """
    cells = list(study.cells)
    if len(cells) <= MOST_ROWS or not any(cell.factors for cell in cells):
        return cells
    chosen: dict[str, Cell] = {study.baseline.arm: study.baseline}
    for cell in sorted(cells, key=lambda cell: len(cell.factors)):
        chosen.setdefault(cell.arm, cell)
    return [cell for cell in cells if chosen[cell.arm] is cell]


def main_rows(study: StudyResults) -> list[Row]:
    """The main table."""
    return _rows(study, main_cells(study))


def other_rows(study: StudyResults) -> list[Row]:
    """The cells that the main table leaves out."""
    shown = main_cells(study)
    return _rows(study, [cell for cell in study.cells if cell not in shown])


def _rows(study: StudyResults, cells: list[Cell]) -> list[Row]:
    found = styles(cells)
    return [_row(study, cell, found[cell.name]) for cell in cells]


def _row(study: StudyResults, cell: Cell, style: Style) -> Row:
    """One cell's line."""
    steps, seconds = study.training_steps(cell), study.training_seconds(cell)
    return Row(
        cell=cell,
        style=style,
        scores={name: score(study, cell, name, study.metric) for name in study.measured_decodings()},
        deletion_rate=_value(study, cell, "deletion_rate"),
        actions=_value(study, cell, "actions"),
        time=duration(seconds),
        seconds=ABSENT if seconds is None else f"{seconds:,.0f} s",
        steps=ABSENT if steps is None else f"{steps:,.0f}",
    )


def score(study: StudyResults, cell: Cell, decoding: str, metric: str) -> Score | None:
    """What a cell has of a metric; None if it was not measured."""
    estimate = study.estimate(cell, decoding, metric)
    if estimate is None:
        return None
    compared = study.comparison(cell, decoding, metric)
    direction = compared.direction if compared else 0
    return Score(
        value=number(metric, estimate.mean),
        interval=interval(metric, estimate.low, estimate.high),
        short_interval=_short(metric, estimate.low, estimate.high),
        direction=direction,
        verdict={1: "better", -1: "worse"}.get(direction * metric_of(metric).better, ""),
        comparison="" if compared is None else comparison_text(metric, compared),
    )


def comparison_text(metric: str, compared: Comparison) -> str:
    """`+0.640 [0.601, 0.678], adjusted p < 0.001`."""
    text = difference(metric, compared.difference)
    if compared.low is not None and compared.high is not None:
        text += f" {interval(metric, compared.low, compared.high)}"
    return text if compared.p_adjusted is None else f"{text}, adjusted {p_value(compared.p_adjusted)}"


def measured_metrics(study: StudyResults) -> list[str]:
    """Every metric that any cell has: the main ones, then known ones, then the rest by name."""
    found = {metric for _, _, metric in study.estimates}
    known = [name for name in (*study.metrics, *METRICS) if name in found]
    return [*dict.fromkeys(known), *sorted(found - set(known))]


def all_scores(study: StudyResults) -> list[tuple[Cell, str, list[Score | None]]]:
    """`(cell, way of decoding, a score for each of measured_metrics)`, for all cells and ways of decoding."""
    metrics = measured_metrics(study)
    lines = [
        (cell, decoding, [score(study, cell, decoding, metric) for metric in metrics])
        for cell in study.cells
        for decoding in study.decodings
    ]
    return [line for line in lines if any(line[2])]


def _value(study: StudyResults, cell: Cell, metric: str) -> str:
    estimate = study.estimate(cell, study.decoding, metric)
    return ABSENT if estimate is None else number(metric, estimate.mean)


def _short(metric: str, low: float | None, high: float | None) -> str:
    """An interval in at most seven characters where it is one of shares: `.94–.99`."""
    if low is None or high is None:
        return ""
    if not metric_of(metric).is_share:
        return f"{low:.3g}–{high:.3g}"
    ends = (f"{end:.2f}".removeprefix("0") for end in (low, high))
    return "–".join({".00": "0", "1.00": "1"}.get(end, end) for end in ends)
