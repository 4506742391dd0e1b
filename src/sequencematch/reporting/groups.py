"""The scores of groups of questions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .heat import HeatCell, HeatTable, extent, level
from .rows import Row
from .study import StudyResults
from .wording import count, decoding_title


def group_tables(study: StudyResults, rows: Sequence[Row]) -> list[HeatTable]:
    """The mean score by group of questions and cell, a table for each way of decoding; none if there is one group."""
    if study.answers is None or study.answers["group"].nunique() < 2:
        return []
    answers = study.answers.dropna(subset="score")
    sizes = answers.groupby("group", observed=True)["question"].nunique()
    where = ["decoding", "group", "cell", "seed"]
    by_seed = answers.groupby(where, observed=True)["score"].mean()
    means = by_seed.groupby(where[:-1], observed=True).mean()
    shown = {row.cell.name for row in rows}
    known = {key: float(value) for key, value in means.items() if key[2] in shown}
    if not known:
        return []
    low, high = extent(list(known.values()))
    tables = []
    for decoding in study.decodings:
        lines = []
        for group in sorted(sizes.index, key=_natural):
            label = f"{group or 'none'} ({count(int(sizes[group]), 'question')})"
            cells = [
                _cell(known.get((decoding, group, row.cell.name)), low, high, f"{group}, {row.cell.title}")
                for row in rows
            ]
            lines.append((label, cells))
        if any(cell for _, cells in lines for cell in cells):
            columns = [row.cell.title for row in rows]
            scale = (f"{low:.3f}", f"{high:.3f}")
            tables.append(HeatTable(decoding_title(decoding), "Group", columns, lines, scale))
    return tables


def _cell(value: float | None, low: float, high: float, note: str) -> HeatCell | None:
    return None if value is None else HeatCell(f"{value:.3f}", level(value, low, high), f"{note}: {value:.3f}")


def _natural(name: str) -> list[tuple[int, str]]:
    """So that `base 10` comes after `base 9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(name))]
