"""A study's main tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .findings import headline
from .rows import Row, Score, main_rows, other_rows
from .study import StudyResults
from .wording import ABSENT, decoding_title, metric_of

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NAME_WIDTH = 13
MOST_COLUMNS = 5
"""With more ways of decoding than this, a table is continued in another."""


def study_tables(study: StudyResults) -> list[Table]:
    """The study's main tables: the main metric with its 95% interval, deletions, actions and what training took.

    The baseline comes first; what is significantly better than it is bold. Settings that the main table leaves out
    follow in tables of their own, as do ways of decoding for which a table has no room.
    """
    decodings = study.measured_decodings()
    parts = [decodings[i : i + MOST_COLUMNS] for i in range(0, len(decodings), MOST_COLUMNS)] or [[]]
    tables = []
    for rows, title in ((main_rows(study), study.title), (other_rows(study), f"{study.title}: other settings")):
        if rows:
            tables += [_table(study, rows, part, title, part is parts[0]) for part in parts]
    return tables


def _table(study: StudyResults, rows: Sequence[Row], decodings: Sequence[str], title: str, first: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    caption = (
        f"{metric_of(study.metric).title} and its 95% interval; ▲ ▼: significantly above, below {study.baseline.title}"
    )
    if rows[0].cell is study.baseline:
        caption += f"\n{headline(study)}"
    table = Table(
        title=Text(title, style="bold"),
        caption=Text(caption),
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("", overflow="fold", min_width=NAME_WIDTH)
    extra = ("del.\nrate", "actions", "train\ntime", "steps") if first else ()
    for heading in (
        *(decoding_title(name).replace("deletion", "del.").replace(" ", "\n") for name in decodings),
        *extra,
    ):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for line in rows:
        scores = [line.scores[name] for name in decodings]
        name = Text(
            line.cell.title, style="bold" if any(found and found.verdict == "better" for found in scores) else ""
        )
        numbers = (line.deletion_rate, line.actions, line.seconds, line.steps) if first else ()
        table.add_row(name, *map(_cell, scores), *(Text(text) for text in numbers))
    return table


def _cell(score: Score | None) -> Text:
    from rich.text import Text

    if score is None:
        return Text(ABSENT)
    mark = {1: "▲", -1: "▼"}.get(score.direction, "")
    return Text.assemble((score.value + mark, "bold" if score.verdict == "better" else ""), f"\n{score.short_interval}")
