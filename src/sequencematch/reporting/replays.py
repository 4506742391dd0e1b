"""Transcripts to browse: what each deletion took back, and how the implicit reward and the value colour the pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .heat import LEVELS
from .rows import Row
from .study import Completion, Piece, StudyResults
from .styles import Style
from .wording import decoding_title

MAX_PIECES = 40_000
"""The most pieces that a study's transcripts have on the page, so that it stays quick to open."""

TINTED = 0.95
"""So large a share of the pieces lies within the ends of a colour scale."""


@dataclass(frozen=True)
class Scale:
    """A diverging colour scale: its middle shade stands for `middle`, the outer ones for `middle` ± `reach`."""

    middle: float
    reach: float

    @property
    def labels(self) -> tuple[str, str, str]:
        """What the first, the middle and the last shade stand for."""
        low, high = self.middle - self.reach, self.middle + self.reach
        return f"≤ {_short(low)}", _short(self.middle), f"≥ {_short(high)}"

    def level(self, value: float) -> int:
        """The shade of a value, from 0 to LEVELS - 1."""
        half = LEVELS // 2
        return min(LEVELS - 1, max(0, half + round(half * (value - self.middle) / self.reach)))


@dataclass(frozen=True)
class Transcripts:
    """The transcripts of one cell and way of decoding."""

    cell: int
    """Index of the cell among those with transcripts, as is `decoding` of ways of decoding."""
    decoding: int
    style: Style
    cell_title: str
    decoding_title: str
    reward: Scale | None
    """None where pieces carry no rewards, as is `value`."""
    value: Scale | None
    items: list[dict[str, Any]]
    left_out: int
    """How many the results have beyond these."""
    open: bool
    """Whether these are shown first."""


@dataclass(frozen=True)
class Browser:
    """The transcripts of a study, and the titles among which to choose."""

    cells: list[str]
    decodings: list[str]
    groups: list[Transcripts]

    @property
    def has_wrong(self) -> bool:
        """Whether any transcript is known to be wrong."""
        return any(one["correct"] is False for group in self.groups for one in group.items)

    @property
    def has_deletions(self) -> bool:
        """Whether any transcript deletes."""
        return any(one["deletes"] for group in self.groups for one in group.items)

    @property
    def colourings(self) -> list[str]:
        """By what pieces can be coloured: `reward`, `value`, both or nothing."""
        return [name for name in ("reward", "value") if any(getattr(group, name) for group in self.groups)]


def browse(study: StudyResults, rows: Sequence[Row]) -> Browser | None:
    """The transcripts of the main cells by cell and way of decoding; None if there are none.

    Shown first is, of the cells whose transcripts delete, the best one under the main way of decoding.
    """
    groups = [
        (row, decoding, found)
        for row in rows
        for decoding in study.decodings
        if (found := [one for one in study.completions if (one.cell, one.decoding) == (row.cell.name, decoding)])
    ]
    if not groups:
        return None
    cells = {row.cell.name: row.cell.title for row, _, _ in groups}
    decodings = [name for name in study.decodings if any(name == decoding for _, decoding, _ in groups)]
    first = max(groups, key=lambda group: _rank(study, *group))
    several_seeds = len({one.seed for one in study.completions}) > 1
    most = _most_items([found for _, _, found in groups])
    views = []
    for group in groups:
        row, decoding, found = group
        pieces = [piece for one in found for piece in one.pieces]
        reward = scale([piece.reward for piece in pieces if piece.reward is not None], 0.0)
        value = scale([piece.value for piece in pieces if piece.value is not None])
        views.append(
            Transcripts(
                cell=list(cells).index(row.cell.name),
                decoding=decodings.index(decoding),
                style=row.style,
                cell_title=row.cell.title,
                decoding_title=decoding_title(decoding),
                reward=reward,
                value=value,
                items=[item(one, reward, value, several_seeds) for one in found[:most]],
                left_out=max(0, len(found) - most),
                open=group is first,
            )
        )
    return Browser(list(cells.values()), [decoding_title(name) for name in decodings], views)


def scale(values: Sequence[float], middle: float | None = None) -> Scale | None:
    """The colour scale of some values around `middle`, or else around their median; None without values."""
    if not values:
        return None
    middle = float(np.median(values)) if middle is None else middle
    reach = float(np.quantile(np.abs(np.array(values) - middle), TINTED))
    return Scale(middle, reach or 1.0)


def item(one: Completion, reward: Scale | None, value: Scale | None, name_seed: bool) -> dict[str, Any]:
    """What the template needs of a completion."""
    return {
        "prompt": one.prompt,
        "expected": one.expected,
        "completion": one.text,
        "correct": one.correct,
        "seed": one.seed if name_seed else None,
        "deletes": any(piece.fate == "deletion" for piece in one.pieces),
        "pieces": [{**view, **_tint(view["piece"], reward, value)} for view in annotate(one.pieces)],
        "ended": bool(one.pieces) and one.pieces[-1].fate == "end",
    }


def annotate(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Add to each piece the text to show, and to each deleted one `by`, the index of the deletion that took it.

    A deletion called `<reset>` takes everything back, any other one token; one right before a token that stayed took
    whatever else was deleted.
    """
    shown: list[dict[str, Any]] = []
    standing: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        view: dict[str, Any] = {"piece": piece, "fate": piece.fate, "text": _visible(piece.text), "by": None}
        shown.append(view)
        if piece.fate == "deletion":
            resets = piece.text.strip() == "<reset>"
            view["text"] = "⟲" if resets else "⌫"
            after = pieces[index + 1].fate if index + 1 < len(pieces) else "end"
            everything = resets or after in ("kept", "end")
            while standing and standing[-1]["fate"] == "deleted":
                standing.pop()["by"] = index
                if not everything:
                    break
        elif piece.fate != "end":
            standing.append(view)
    return shown


def _tint(piece: Piece, reward: Scale | None, value: Scale | None) -> dict[str, Any]:
    """A piece's shades, and its name and exact numbers as text."""
    classes, texts = [], [piece.text.strip()] if piece.fate in ("deletion", "end") else []
    if reward is not None and piece.reward is not None:
        classes.append(f"r{reward.level(piece.reward)}")
        texts.append(f"reward {_exact(piece.reward)}")
    if value is not None and piece.value is not None:
        classes.append(f"v{value.level(piece.value)}")
        texts.append(f"value {_exact(piece.value)}")
    return {"shades": " ".join(classes), "title": ", ".join(texts)}


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _exact(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _rank(study: StudyResults, row: Row, decoding: str, found: Sequence[Completion]) -> tuple[bool, bool, float]:
    estimate = study.estimate(row.cell, decoding)
    deletes = any(piece.fate == "deletion" for one in found for piece in one.pieces)
    quality = -float("inf") if estimate is None else (study.better or 1) * estimate.mean
    return decoding == study.decoding, deletes, quality


def _most_items(groups: Sequence[Sequence[Completion]]) -> int:
    """How many transcripts of each group keep the page within MAX_PIECES; at least one."""
    most = max(len(group) for group in groups)
    while most > 1 and sum(len(one.pieces) for group in groups for one in group[:most]) > MAX_PIECES:
        most -= 1
    return most


def _visible(text: str) -> str:
    """A token's text with its white space in sight."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"
