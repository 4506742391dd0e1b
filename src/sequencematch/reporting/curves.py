"""Learning curves, and how deletions develop over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .axes import amount_axis, round_axis
from .charts import Chart, Point
from .rows import Row
from .study import StudyResults

MAX_POINTS = 120
"""A longer curve is averaged down to about so many points."""

LEARNING: tuple[tuple[str, str, str], ...] = (
    ("objective/bc", "Negative log-likelihood per action", "Of each arm's own demonstrations; lower is better."),
    ("loss", "Training loss", "Each arm has its own objective, so levels do not compare across arms."),
    ("objective/expert_reward_mean", "Implied reward, demonstrations", "Mean r(s, a) of what the expert does."),
    ("objective/policy_reward_mean", "Implied reward, rollouts", "Mean r(s, a) of what the model itself does."),
)
"""`(logged name, title, note)`."""

BACKSPACE: tuple[tuple[str, str, str], ...] = (
    ("backspace/rate", "Deletion rate", "Share of deletions among the actions of rollouts."),
    ("backspace/after_wrong", "P(deletion) after a wrong token", "At planted mistakes; higher is better."),
    ("backspace/after_right", "P(deletion) after a right token", "On the expert's own way; lower is better."),
)


def curve_charts(study: StudyResults, rows: Sequence[Row], series: Sequence[tuple[str, str, str]]) -> list[Chart]:
    """One chart for each quantity that any cell recorded: the mean over seeds, and the range of seeds as a band."""
    charts = []
    for key, title, note in series:
        curves = [(row, found) for row in rows if len(found := _over_seeds(study, row.cell.name, key)) > 1]
        if curves:
            charts.append(_chart(title, note, curves))
    return charts


def _chart(title: str, note: str, curves: Sequence[tuple[Row, np.ndarray]]) -> Chart:
    every = np.concatenate([found for _, found in curves])
    x_axis = amount_axis(every[:, 0].tolist(), may_be_log=False)
    chart = Chart(title, note, x_axis, round_axis(every[:, 1:].ravel().tolist()), "step")
    for row, found in curves:
        steps, means, lows, highs = found.T.tolist()
        if lows != highs:
            chart.band(row.style, _points(steps, lows), _points(steps, highs))
        chart.draw(row.style, _points(steps, means))
        chart.mark(row.style, (steps[-1], means[-1]), f"{row.cell.title}: {means[-1]:.4g}")
    ends = (f"{row.cell.title} from {found[0, 1]:.4g} to {found[-1, 1]:.4g}" for row, found in curves)
    chart.summary = f"{title} by training step: {'; '.join(ends)}"
    return chart


def _points(xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
    return list(zip(xs, ys, strict=True))


def _over_seeds(study: StudyResults, cell: str, key: str) -> np.ndarray:
    """float [points, 4]: step, and mean, least and largest value of the seeds there.

    Seeds are read off at the steps of the one that ends first, between their own where they logged at others.
    """
    curves = [_curve(run.curve, key) for run in study.runs if run.cell == cell]
    curves = [curve for curve in curves if len(curve) > 1]
    if not curves:
        return np.empty((0, 4))
    steps = min(curves, key=lambda curve: curve[-1, 0])[:, 0]
    values = np.stack([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves])
    return np.stack([steps, values.mean(0), values.min(0), values.max(0)], axis=1)


def _curve(entries: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    """float [points, 2]: step and value, averaged in bins where there are too many."""
    points = np.array([(entry["step"], entry[key]) for entry in entries if "step" in entry and key in entry])
    size = -(-len(points) // MAX_POINTS)
    if size < 2:
        return points.reshape(-1, 2)
    return np.stack([points[i : i + size].mean(axis=0) for i in range(0, len(points), size)])
