"""Tables whose cells are coloured by their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = 9
"""Number of shades in the style sheet."""


@dataclass(frozen=True)
class HeatCell:
    """A number as text, its shade from 0 to LEVELS - 1, and what it is in words."""

    text: str
    level: int
    note: str
    mark: int = 0
    """1 if significantly above the baseline, -1 if below."""


@dataclass(frozen=True)
class HeatTable:
    """A table of shades; None where nothing was measured."""

    title: str
    corner: str
    """What rows and columns are."""
    columns: list[str]
    rows: list[tuple[str, list[HeatCell | None]]]
    scale: tuple[str, str]
    """What the faintest and the strongest shade stand for."""


def level(value: float, low: float, high: float) -> int:
    """The shade of a value on a scale from `low` to `high`."""
    if high <= low:
        return LEVELS // 2
    return min(LEVELS - 1, max(0, int(LEVELS * (value - low) / (high - low))))


def extent(values: Sequence[float]) -> tuple[float, float]:
    """The scale of some values."""
    return min(values), max(values)
