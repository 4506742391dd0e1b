"""The main metric against what varies: lines over a factor's values, and tables of two numeric factors crossed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .axes import factor_axis, metric_axis
from .charts import Chart, estimate_text
from .heat import HeatCell, HeatTable, extent, level
from .rows import score
from .study import Cell, StudyResults
from .styles import Style, style_of, styles
from .wording import capitalised, decoding_title, metric_of, number, plain

UNSET = "as configured"
"""Stands for the value of a factor in a cell that neither varies it nor has it in its options."""


@dataclass(frozen=True)
class Setting:
    """A cell, with the values of all factors that its arm varies, those of its own options included."""

    cell: Cell
    factors: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Settings of one arm that differ in one numeric factor alone, by its value; at least two."""

    factor: str
    rest: Mapping[str, Any]
    """The other factors and their values."""
    points: list[tuple[float, Cell]]

    @property
    def arm(self) -> str:
        """The arm."""
        return self.points[0][1].arm

    def name(self, shown: Sequence[str]) -> str:
        """The arm and the factors of `shown`, as people read them."""
        others = (f"{plain(name)} {plain(value)}" for name, value in self.rest.items() if name in shown)
        return ", ".join([self.points[0][1].arm_title, *others])


def settings(study: StudyResults) -> list[Setting]:
    """All cells of arms that vary anything. Cells that set the same are counted once."""
    varied: dict[str, dict[str, None]] = {}
    for cell in study.cells:
        varied.setdefault(cell.arm, {}).update(dict.fromkeys(cell.factors))
    found: list[Setting] = []
    for cell in study.cells:
        factors = {name: _value(study, cell, name) for name in varied[cell.arm]}
        if factors and not any(one.cell.arm == cell.arm and one.factors == factors for one in found):
            found.append(Setting(cell, factors))
    return found


def sweeps(study: StudyResults) -> list[Sweep]:
    """Every line over a numeric factor, factors in the study's order."""
    lines: dict[tuple[str, str, tuple], tuple[dict[str, Any], dict[float, Cell]]] = {}
    for setting in settings(study):
        for factor, value in setting.factors.items():
            if is_number(value):
                rest = {name: other for name, other in setting.factors.items() if name != factor}
                key = (factor, setting.cell.arm, tuple(map(repr, rest.items())))
                lines.setdefault(key, (rest, {}))[1][value] = setting.cell
    found = [
        Sweep(factor, rest, sorted(points.items(), key=lambda pair: pair[0]))
        for (factor, _, _), (rest, points) in lines.items()
        if len(points) > 1
    ]
    order = list(dict.fromkeys(name for cell in study.cells for name in cell.factors))
    return sorted(found, key=lambda sweep: order.index(sweep.factor))


def factor_charts(study: StudyResults, decoding: str) -> list[Chart]:
    """Under one way of decoding: a chart for each numeric factor, with a line for each arm and each categorical value.

    Lines that another numeric factor crosses are left to `heat_tables`.
    """
    every = sweeps(study)
    plain_lines = [sweep for sweep in every if not _crossing(sweep, every)]
    charts = []
    for factor in dict.fromkeys(sweep.factor for sweep in plain_lines):
        lines = [sweep for sweep in plain_lines if sweep.factor == factor]
        chart = _factor_chart(study, factor, lines, decoding)
        if chart is not None:
            charts.append(chart)
    return charts


def heat_tables(study: StudyResults, decoding: str) -> list[HeatTable]:
    """Under one way of decoding: a table for each arm and each two of its numeric factors that are crossed."""
    every = sweeps(study)
    found: dict[tuple, HeatTable] = {}
    for sweep in every:
        for other in _crossing(sweep, every):
            table = _heat_table(study, sweep, other, every, decoding)
            # The same two factors come up again with rows and columns exchanged.
            rest = {name: value for name, value in sweep.rest.items() if name != other}
            key = (sweep.arm, frozenset((sweep.factor, other)), tuple(map(repr, rest.items())))
            if table is not None:
                found.setdefault(key, table)
    return list(found.values())


def is_number(value: Any) -> bool:
    """Whether a factor's value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _crossing(sweep: Sweep, every: Sequence[Sweep]) -> list[str]:
    """The numeric factors of whose values there are several lines like this one."""
    found = []
    for name, value in sweep.rest.items():
        if is_number(value):
            like = [other for other in every if _is_like(other, sweep, name)]
            if len(like) > 1:
                found.append(name)
    return found


def _is_like(other: Sweep, sweep: Sweep, name: str) -> bool:
    """Whether two lines are of the same arm and factor, and differ in `name` alone if at all."""
    same = (other.arm, other.factor) == (sweep.arm, sweep.factor) and other.rest.keys() == sweep.rest.keys()
    return same and all(other.rest[key] == value for key, value in sweep.rest.items() if key != name)


def _factor_chart(study: StudyResults, factor: str, lines: Sequence[Sweep], decoding: str) -> Chart | None:
    measured = [
        (sweep, [(x, cell, found) for x, cell in sweep.points if (found := study.estimate(cell, decoding))])
        for sweep in lines
    ]
    measured = [(sweep, points) for sweep, points in measured if len(points) > 1]
    if not measured:
        return None
    baseline = study.estimate(study.baseline, decoding)
    swept = any(cell is study.baseline for _, points in measured for _, cell, _ in points)
    ends = [end for _, points in measured for _, _, found in points for end in (found.mean, *found.ends)]
    xs = [x for _, points in measured for x, _, _ in points]
    if baseline is not None and not swept:
        ends.append(baseline.mean)
    name = capitalised(plain(factor))
    note = f"{metric_of(study.metric).title}, {decoding_title(decoding)}"
    chart = Chart(name, note, factor_axis(xs), metric_axis(study.metric, ends), plain(factor))
    if baseline is not None and not swept:
        _reference(chart, study, baseline.mean, (min(xs), max(xs)))
    # Only what tells the lines of one chart apart belongs into their names.
    shown = _differing(lines)
    texts = []
    for (sweep, points), style in zip(measured, _line_styles(study, [sweep for sweep, _ in measured]), strict=True):
        chart.legend.append((style, sweep.name(shown)))
        chart.band(
            style, [(x, found.ends[0]) for x, _, found in points], [(x, found.ends[1]) for x, _, found in points]
        )
        chart.draw(style, [(x, found.mean) for x, _, found in points])
        for x, cell, found in points:
            text = f"{plain(x)}: {estimate_text(study, found.mean, found.low, found.high)}"
            chart.mark(style, (x, found.mean), f"{cell.arm_title}, {plain(factor)} {text}")
            texts.append(f"{sweep.name(shown)} at {text}")
    chart.summary = f"{note} by {plain(factor)}: {'; '.join(texts)}"
    return chart


def _differing(lines: Sequence[Sweep]) -> list[str]:
    """The factors of which lines have different values."""
    values: dict[str, set[str]] = {}
    for line in lines:
        for name, value in line.rest.items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, found in values.items() if len(found) > 1]


def _reference(chart: Chart, study: StudyResults, mean: float, ends: tuple[float, float]) -> None:
    """The baseline, which does not vary the factor, as a level line."""
    style = replace(styles(study.cells)[study.baseline.name], dash=1)
    chart.draw(style, [(end, mean) for end in ends])
    chart.legend.append((style, f"{study.baseline.title}, {number(study.metric, mean)}"))


def _line_styles(study: StudyResults, lines: Sequence[Sweep]) -> list[Style]:
    arms = list(dict.fromkeys(cell.arm for cell in study.cells))
    used: dict[str, int] = {}
    found = []
    for sweep in lines:
        used[sweep.arm] = used.get(sweep.arm, -1) + 1
        found.append(style_of(arms.index(sweep.arm), used[sweep.arm]))
    return found


def _heat_table(
    study: StudyResults, sweep: Sweep, other: str, every: Sequence[Sweep], decoding: str
) -> HeatTable | None:
    lines = [line for line in every if _is_like(line, sweep, other)]
    cells = {(line.rest[other], x): cell for line in lines for x, cell in line.points}
    means = {key: found.mean for key, cell in cells.items() if (found := study.estimate(cell, decoding))}
    if not means:
        return None
    low, high = extent(list(means.values()))

    def shade(y: float, x: float) -> HeatCell | None:
        found = score(study, cells[y, x], decoding, study.metric) if (y, x) in cells else None
        if found is None:
            return None
        note = f"{plain(sweep.factor)} {plain(x)}, {plain(other)} {plain(y)}: {found.value} {found.interval}"
        return HeatCell(found.value, level(means[y, x], low, high), note, found.direction)

    xs, ys = sorted({x for _, x in cells}), sorted({y for y, _ in cells})
    alike = [line for line in every if (line.arm, line.factor) == (sweep.arm, sweep.factor) and _crossing(line, every)]
    shown = [name for name in _differing(alike) if name != other]
    return HeatTable(
        title=f"{sweep.name(shown)}, {decoding_title(decoding)}",
        corner=f"{plain(other)} ↓ {plain(sweep.factor)} →",
        columns=[plain(x) for x in xs],
        rows=[(plain(y), [shade(y, x) for x in xs]) for y in ys],
        scale=(number(study.metric, low), number(study.metric, high)),
    )


def _value(study: StudyResults, cell: Cell, name: str) -> Any:
    """A factor's value in a cell, or else in its arm's own options or the study's; numbers as float.

    `a.b` is the entry b of the mapping a.
    """
    value: Any = cell.factors.get(name)
    for options in ((study.config.get("arms") or {}).get(cell.arm), study.config.get("options")):
        if value is None:
            value = options
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return UNSET
    return float(value) if is_number(value) else value
