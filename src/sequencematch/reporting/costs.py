"""What quality costs: within how many actions answers are right, the frontier of cost and quality, training time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .axes import LOG_SPAN, Axis, amount_axis, metric_axis
from .charts import Chart, estimate_text, metric_label
from .rows import Row
from .study import Cell, StudyResults
from .styles import COLOURS, Style, styles
from .wording import decoding_title, duration, number

MAX_BUDGETS = 150
"""Budgets at which a curve is read off, at most."""

WITHOUT_TAIL = 0.995
"""The charts of budgets end where so large a share of all answers has ended."""

SHARES = Axis(0.0, 1.0, False, tuple((25.0 * tick, f"{tick / 4:g}") for tick in range(5)))


@dataclass(frozen=True)
class Frontier:
    """The chart of cost and quality, what its shapes mean, and the frontier in words."""

    chart: Chart
    shapes: list[tuple[Style, str]]
    points: list[str]
    """From the cheapest to the best."""


def budget_charts(study: StudyResults, rows: Sequence[Row]) -> list[Chart]:
    """The share of questions answered right within B actions, by B: a chart for each way of decoding."""
    if study.answers is None or study.answers["score"].notna().sum() == 0:
        return []
    curves = right_within(study)
    budgets = _budgets(study)
    charts = []
    for decoding in study.decodings:
        shown = [(row, curves[row.cell.name, decoding]) for row in rows if (row.cell.name, decoding) in curves]
        if not shown:
            continue
        chart = Chart(decoding_title(decoding), "", amount_axis(budgets.tolist()), SHARES, "actions, at most")
        for row, found in shown:
            shares = found(budgets)
            # Steps: within a budget between two whole numbers there is no more than within the lower one.
            corners = np.repeat(np.stack([budgets, shares], axis=1), 2, axis=0)
            chart.draw(row.style, zip(corners[1:, 0].tolist(), corners[:-1, 1].tolist(), strict=True))
            chart.mark(row.style, (budgets[-1], shares[-1]), f"{row.cell.title}: {shares[-1]:.3f}")
        ends = (f"{row.cell.title} {found(budgets[-1:])[0]:.3f}" for row, found in shown)
        chart.summary = f"Share answered right within {budgets[-1]:g} actions, {chart.title}: {'; '.join(ends)}"
        charts.append(chart)
    return charts


class Within:
    """The share of questions answered right within B actions: the mean over seeds of score * (actions <= B)."""

    def __init__(self) -> None:
        self._seeds: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, actions: np.ndarray, scores: np.ndarray, questions: int) -> None:
        """Add a seed: its numbers of actions, ascending, and the sums of the scores of answers that took so many."""
        self._seeds.append((actions, np.concatenate([[0.0], np.cumsum(scores)]) / questions))

    def __call__(self, budgets: np.ndarray) -> np.ndarray:
        """float [budgets]."""
        shares = [sums[np.searchsorted(actions, budgets, side="right")] for actions, sums in self._seeds]
        return np.mean(shares, axis=0)


def right_within(study: StudyResults) -> dict[tuple[str, str], Within]:
    """`(cell, way of decoding)` -> its curve. Questions without a score do not count."""
    found: dict[tuple[str, str], Within] = {}
    assert study.answers is not None
    answers = study.answers.dropna(subset="score")
    where = ["cell", "decoding", "seed"]
    totals = answers.groupby([*where, "actions"], observed=True)["score"].agg(["sum", "count"]).reset_index()
    for (cell, decoding, _), part in totals.groupby(where, observed=True):
        curve = found.setdefault((cell, decoding), Within())
        curve.add(part["actions"].to_numpy(), part["sum"].to_numpy(), part["count"].sum())
    return found


def frontier(study: StudyResults) -> Frontier | None:
    """Mean actions per answer against the main metric, and what nothing is both cheaper and better than.

    None without measurements of both.
    """
    colours = styles(study.cells)
    decodings = study.measured_decodings()
    shapes = {name: Style(0, index % COLOURS, 0) for index, name in enumerate(decodings)}
    points = []
    for cell in study.cells:
        for name in decodings:
            cost, quality = study.estimate(cell, name, "actions"), study.estimate(cell, name)
            if cost and quality:
                points.append((cost.mean, quality.mean, cell, name))
    if not points or not study.better:
        return None
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    title = f"{metric_label(study)} and actions per answer"
    chart = Chart(title, "", amount_axis(xs), metric_axis(study.metric, ys), "actions per answer, mean")
    best = pareto([(x, study.better * y) for x, y in zip(xs, ys, strict=True)])
    chart.draw(Style(0, 0, 0), [(xs[index], ys[index]) for index in best], "frontier")
    texts = [f"{_where(cell, name)}: {number(study.metric, y)} with {x:.1f} actions" for x, y, cell, name in points]
    for (x, y, cell, name), text in zip(points, texts, strict=True):
        chart.mark(Style(colours[cell.name].colour, shapes[name].shape, 0), (x, y), text)
    chart.summary = f"{title}. On the frontier: {'; '.join(texts[index] for index in best)}"
    return Frontier(
        chart, [(style, decoding_title(name)) for name, style in shapes.items()], [texts[index] for index in best]
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the `(cost, quality)` that no other point beats in one without losing in the other, by cost."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    best, found = -float("inf"), []
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            found.append(index)
    return found


def training_chart(study: StudyResults, rows: Sequence[Row]) -> Chart | None:
    """Training time against the main metric under the main way of decoding; None if unknown."""
    known = [
        (row, seconds, estimate)
        for row in rows
        if (seconds := study.training_seconds(row.cell)) and (estimate := study.estimate(row.cell, study.decoding))
    ]
    if not known:
        return None
    title = f"{metric_label(study)} and training time"
    ends = [end for _, _, estimate in known for end in (estimate.mean, *estimate.ends)]
    x_axis = amount_axis([seconds for _, seconds, _ in known])
    chart = Chart(title, "", x_axis, metric_axis(study.metric, ends), "seconds of training, mean")
    texts = []
    for row, seconds, estimate in known:
        text = (
            f"{row.cell.title}: {estimate_text(study, estimate.mean, estimate.low, estimate.high)}, {duration(seconds)}"
        )
        chart.draw(row.style, [(seconds, end) for end in estimate.ends], "thin")
        chart.mark(row.style, (seconds, estimate.mean), text)
        texts.append(text)
    chart.summary = f"{title}, {decoding_title(study.decoding)}: {'; '.join(texts)}"
    return chart


def _budgets(study: StudyResults) -> np.ndarray:
    """Whole numbers of actions at which curves are read off; from 0 on a linear axis."""
    assert study.answers is not None
    actions = study.answers["actions"]
    first, last = max(1, int(actions.min())), max(2, int(np.ceil(actions.quantile(WITHOUT_TAIL))))
    log = last >= LOG_SPAN * first
    if last <= MAX_BUDGETS:
        return np.arange(first if log else 0, last + 1).astype(float)
    return np.unique(np.round((np.geomspace if log else np.linspace)(first if log else 0, last, MAX_BUDGETS)))


def _where(cell: Cell, decoding: str) -> str:
    return f"{cell.title}, {decoding_title(decoding)}"
