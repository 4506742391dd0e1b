"""Which colour, shape and dash stand for which cell: nothing is told by colour alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .study import Cell

COLOURS = 6
"""Number of colours in the style sheet, and of the shapes of markers; further arms start over."""
DASHES = 4


@dataclass(frozen=True)
class Style:
    """Indices into the style sheet's colours, shapes and dashes."""

    colour: int
    shape: int
    dash: int


def styles(cells: Iterable[Cell]) -> dict[str, Style]:
    """The style of each cell by name: an arm has a colour, its settings have different shapes and dashes."""
    arms: dict[str, int] = {}
    settings: dict[str, int] = {}
    found = {}
    for cell in cells:
        arm = arms.setdefault(cell.arm, len(arms))
        setting = settings[cell.arm] = settings.get(cell.arm, -1) + 1
        found[cell.name] = style_of(arm, setting)
    return found


def style_of(arm: int, setting: int) -> Style:
    """The style of an arm's setting, both counted from 0."""
    return Style(arm % COLOURS, (arm + setting) % COLOURS, setting % DASHES)
