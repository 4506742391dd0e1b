"""What the numbers bear out, in plain words: where cells differ from the baseline, and where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .rows import main_cells
from .study import Cell, Comparison, StudyResults
from .wording import capitalised, count, decoding_title, interval, listed, metric_of, number, p_value

MOST_NAMES = 6
"""Longer lists are cut: the largest differences first."""

Compared = list[tuple[Cell, Comparison]]


@dataclass(frozen=True)
class Finding:
    """What was found under one way of decoding."""

    title: str
    sentences: list[str]


def findings(study: StudyResults) -> list[Finding]:
    """One finding for each way of decoding, the main one first."""
    cells = main_cells(study)
    return [Finding(decoding_title(name), _sentences(study, cells, name)) for name in study.measured_decodings()]


def headline(study: StudyResults) -> str:
    """The finding under the main way of decoding, without its numbers in detail."""
    cells = [cell for cell in main_cells(study) if cell is not study.baseline]
    compared = _compared(study, cells, study.decoding)
    if not compared:
        return _best(study, study.decoding)
    where = f"{decoding_title(study.decoding)}, {_name(study)}"
    parts = []
    for direction, word in ((1, "above"), (-1, "below")):
        names = [cell.title for cell, found in compared if found.direction == direction]
        if names:
            parts.append(f"{_cut(names)} {'is' if len(names) == 1 else 'are'} {word} {study.baseline.title}")
    return f"{where}: {'; '.join(parts)}." if parts else f"{where}: {_nothing(study, compared)}"


def _sentences(study: StudyResults, cells: Sequence[Cell], decoding: str) -> list[str]:
    others = [cell for cell in cells if cell is not study.baseline]
    compared = _compared(study, others, decoding)
    if not compared:
        return [_best(study, decoding)]
    found = [_differing(study, compared, direction, word) for direction, word in ((1, "above"), (-1, "below"))]
    level = [cell.title for cell, comparison in compared if comparison.direction == 0]
    sentences = [sentence for sentence in found if sentence]
    if not sentences:
        sentences = [capitalised(_nothing(study, compared))]
    elif level:
        sentences.append(f"No significant difference: {_cut(level)}.")
    rest = [cell for cell in study.cells if cell not in cells]
    return [*sentences, *_elsewhere(study, rest, decoding)]


def _differing(study: StudyResults, compared: Compared, direction: int, word: str) -> str:
    found = [(cell, comparison) for cell, comparison in compared if comparison.direction == direction]
    if not found:
        return ""
    found.sort(key=lambda pair: -abs(pair[1].difference))
    parts = [f"{cell.title} by {_amount(study.metric, comparison)}" for cell, comparison in found]
    text = f"{_cut(parts, '; ')}."
    return f"{word.capitalize()} {study.baseline.title}: {text}"


def _amount(metric: str, found: Comparison) -> str:
    ends = (found.low, found.high)
    if found.difference < 0 and found.low is not None and found.high is not None:
        ends = (-found.high, -found.low)
    amount = f"{number(metric, abs(found.difference))} {interval(metric, *ends)}".strip()
    return amount if found.p_adjusted is None else f"{amount}, adjusted {p_value(found.p_adjusted)}"


def _nothing(study: StudyResults, compared: Compared) -> str:
    known = [found.p_adjusted for _, found in compared if found.p_adjusted is not None]
    smallest = f" (smallest adjusted {p_value(min(known))})" if known else ""
    return f"no significant difference from {study.baseline.title} was found{smallest}."


def _elsewhere(study: StudyResults, cells: Sequence[Cell], decoding: str) -> list[str]:
    compared = _compared(study, cells, decoding)
    if not compared:
        return []
    above, below = (sum(found.direction == direction for _, found in compared) for direction in (1, -1))
    return [f"Of {count(len(compared), 'further setting')}, {above} are significantly above and {below} below."]


def _compared(study: StudyResults, cells: Sequence[Cell], decoding: str) -> Compared:
    found = ((cell, study.comparison(cell, decoding)) for cell in cells)
    return [(cell, comparison) for cell, comparison in found if comparison is not None]


def _best(study: StudyResults, decoding: str) -> str:
    """The highest value, or lowest where that is better, without a claim."""
    found = [(study.estimate(cell, decoding), cell) for cell in study.cells]
    known = [(estimate, cell) for estimate, cell in found if estimate is not None]
    if not known:
        return "Nothing was measured."
    sign = study.better or 1
    best, cell = max(known, key=lambda pair: sign * pair[0].mean)
    ends = interval(study.metric, best.low, best.high)
    return (
        f"{'Highest' if sign > 0 else 'Lowest'} {_name(study)}: {number(study.metric, best.mean)} "
        f"{ends + ' ' if ends else ''}of {cell.title}; no differences were tested."
    )


def _name(study: StudyResults) -> str:
    title = metric_of(study.metric).title
    return title if title.isupper() else title[:1].lower() + title[1:]


def _cut(names: Sequence[str], separator: str = "") -> str:
    shown = list(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        shown.append(f"{len(names) - MOST_NAMES} more")
    return separator.join(shown) if separator else listed(shown)
