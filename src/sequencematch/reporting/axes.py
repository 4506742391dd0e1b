"""Axes: where a number stands, as a percentage of a chart's width or height, and the ticks beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .wording import metric_of

LOG_SPAN = 30
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""

CROWDED = 9.0
"""Ticks closer than so many percent of an axis lose their label."""


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]
    """`(percentage, label)`."""
    zero: bool = False
    """Whether 0, which has no logarithm, stands at the beginning of a logarithmic axis, apart from the rest."""

    def at(self, value: float) -> float:
        """Where a value stands, in percent from the beginning."""
        if not self.log:
            return 100 * (value - self.low) / (self.high - self.low)
        start = 12.0 if self.zero else 0.0
        if value <= 0:
            return 0.0
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return start + (100 - start) * share


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that begin at or below `low` and end at or above `high`."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def round_axis(values: Iterable[float]) -> Axis:
    """A linear axis that begins and ends at round numbers."""
    values = list(values)
    marks = ticks(min(values), max(values))
    return _linear(marks[0], marks[-1], marks)


def metric_axis(metric: str, values: Iterable[float]) -> Axis:
    """An axis of a metric's values that begins and ends at round numbers; one of shares stays within 0 and 1."""
    values = list(values)
    low, high = min(values), max(values)
    if metric_of(metric).is_share and low >= 0 and high <= 1:
        # From 1 alone, round numbers would go upwards.
        marks = [mark for mark in ticks(0.75 if low == 1 else low, high) if mark <= 1]
    else:
        marks = ticks(low, high)
    return _linear(marks[0], marks[-1], marks)


def amount_axis(values: Iterable[float], may_be_log: bool = True) -> Axis:
    """An axis of amounts such as steps, actions or seconds that ends at the largest.

    It is linear from 0, or logarithmic where positive values span a factor of `LOG_SPAN`, if it may be.
    """
    values = list(values)
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high >= LOG_SPAN * low:
        return _logarithmic(low, high, _decades(low, high))
    low = min(0.0, low)
    high = high if high > low else low + 1.0
    marks = [mark for mark in ticks(low, high) if low <= mark <= high + 0.03 * (high - low)]
    return _linear(low, max([high, *marks]), marks)


def factor_axis(values: Iterable[float]) -> Axis:
    """An axis of a factor's values with a tick at each; logarithmic where the positive ones span `LOG_SPAN`."""
    marks = sorted(set(values))
    positive = [mark for mark in marks if mark > 0]
    if marks[0] < 0 or not positive or positive[-1] < LOG_SPAN * positive[0]:
        return _linear(marks[0], marks[-1], marks, margin=0.04)
    return _logarithmic(positive[0], positive[-1], marks)


def _linear(low: float, high: float, marks: Sequence[float], margin: float = 0.0) -> Axis:
    spare = margin * (high - low)
    axis = Axis(low - spare, high + spare, False, ())
    return Axis(axis.low, axis.high, False, _labelled(axis, marks))


def _logarithmic(low: float, high: float, marks: Sequence[float]) -> Axis:
    axis = Axis(low / 1.15, high * 1.15, True, (), zero=min(marks) == 0)
    return Axis(axis.low, axis.high, True, _labelled(axis, marks), axis.zero)


def _labelled(axis: Axis, marks: Sequence[float]) -> tuple[tuple[float, str], ...]:
    found: list[tuple[float, str]] = []
    for mark in marks:
        position = round(axis.at(mark), 2)
        if not found or position - found[-1][0] >= CROWDED:
            found.append((position, f"{mark:,.10g}".replace("-", "−")))
    return tuple(found)


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... between two positive numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    return [mark for mark in marks if low <= mark <= high]
