"""The lines of a study's files as what they stand for.

Each function takes what `json.loads` made of a line, and raises InputError, KeyError, TypeError, ValueError or
AttributeError for one that no study writes; the InputError says what the line does, to follow its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .study import FATES, Cell, Comparison, Completion, Estimate, Key, Piece, TrainingRun
from .wording import decimal, metric_of, plain


class Names:
    """The cells and ways of decoding that study.json lists."""

    def __init__(self, cells: set[str], decodings: set[str]) -> None:
        self._cells = cells
        self._decodings = decodings

    def cell(self, name: Any) -> str:
        """The name. Raises InputError if it is no cell's."""
        if name not in self._cells:
            raise InputError(f"names the cell {name!r}, which study.json does not list")
        return str(name)

    def decoding(self, name: Any) -> str:
        """The name. Raises InputError if it is no way of decoding's."""
        if name not in self._decodings:
            raise InputError(f"names the way of decoding {name!r}, which study.json does not list")
        return str(name)

    def where(self, line: Mapping[str, Any]) -> tuple[str, str]:
        """A line's cell and way of decoding."""
        return self.cell(line["cell"]), self.decoding(line["decoding"])


def about_study(about: Mapping[str, Any]) -> dict[str, Any]:
    """What study.json tells, as fields of `StudyResults`."""
    titles = about.get("titles") or {}
    cells = []
    for cell in about["cells"]:
        arm = str(cell["arm"])
        cells.append(Cell(str(cell["cell"]), arm, str(titles.get(arm, arm)), dict(cell.get("factors") or {})))
    if not about["decodings"] or not about["metrics"]:
        raise InputError("has no way of decoding or no metric")
    wanted = about["baseline"]
    baseline = next((cell for cell in cells if cell.name == wanted), None)
    baseline = baseline or next((cell for cell in cells if cell.arm == wanted), None)
    if baseline is None:
        raise InputError(f"has no cell of its baseline {wanted!r}")
    budget = about.get("budget") or {}
    return {
        "title": str(about.get("title") or about.get("name") or "Study"),
        "description": str(about.get("description") or ""),
        "baseline": baseline,
        "budget": f"{decimal(budget['amount'])} {plain(budget['unit'])}" if budget else "",
        "seeds": tuple(int(seed) for seed in about.get("seeds") or ()),
        "decodings": {str(name): dict(options or {}) for name, options in about["decodings"].items()},
        "cells": (baseline, *(cell for cell in cells if cell is not baseline)),
        "metrics": tuple(str(name) for name in about["metrics"]),
        "questions": None if about.get("questions") is None else int(about["questions"]),
        "facts": {"Versions": dict(about.get("versions") or {}), "Hardware": dict(about.get("hardware") or {})},
        "date": str(about.get("date") or ""),
        "seconds": number(about.get("seconds")),
        "config": dict(about.get("config") or {}),
    }


def seed_values(line: Mapping[str, Any], names: Names) -> list[tuple[Key, int, float]]:
    """The metrics of a line of results.jsonl."""
    cell, decoding = names.where(line)
    numbers = {str(name): number(value) for name, value in line["metrics"].items()}
    seed = int(line["seed"])
    return [((cell, decoding, name), seed, value) for name, value in numbers.items() if value is not None]


def estimate(line: Mapping[str, Any], names: Names) -> tuple[Key, Estimate] | None:
    """A line of summary.jsonl; None without a mean. Student's t has no bounds: a share's interval is cut to 0 and 1."""
    key = (*names.where(line), str(line["metric"]))
    mean, low, high = number(line["mean"]), number(line.get("low")), number(line.get("high"))
    if mean is None:
        return None
    if metric_of(key[2]).is_share and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)
    return key, Estimate(mean, low, high, int(line["seeds"]))


def comparison(line: Mapping[str, Any], names: Names) -> tuple[Key, Comparison] | None:
    """A line of comparisons.jsonl; None without a difference."""
    key = (*names.where(line), str(line["metric"]))
    difference = number(line["difference"])
    if difference is None:
        return None
    low, high, p = (number(line.get(name)) for name in ("low", "high", "p_adjusted"))
    return key, Comparison(difference, low, high, p)


def training_run(line: Mapping[str, Any], names: Names) -> TrainingRun:
    """A line of runs.jsonl."""
    curve = [
        {name: float(value) for name, value in entry.items() if isinstance(value, int | float) and math.isfinite(value)}
        for entry in line.get("curve") or ()
    ]
    steps, seconds = number(line.get("steps")), number(line.get("seconds"))
    return TrainingRun(names.cell(line["cell"]), int(line["seed"]), steps, seconds, curve)


def completions(line: Mapping[str, Any], names: Names) -> list[Completion]:
    """A line of transcripts.jsonl."""
    cell, decoding = names.where(line)
    return [_completion(item, cell, int(line["seed"]), decoding) for item in line["items"]]


def _completion(item: Mapping[str, Any], cell: str, seed: int, decoding: str) -> Completion:
    expected, correct = item.get("expected"), item.get("correct")
    return Completion(
        cell=cell,
        seed=seed,
        decoding=decoding,
        prompt=str(item["prompt"]),
        expected=None if expected is None else str(expected),
        text=str(item["completion"]),
        correct=None if correct is None else bool(correct),
        pieces=tuple(_piece(piece) for piece in item["pieces"]),
    )


def _piece(piece: Mapping[str, Any]) -> Piece:
    if piece["fate"] not in FATES:
        raise InputError(f"has a piece of the unknown fate {piece['fate']!r}")
    return Piece(str(piece["text"]), piece["fate"], number(piece.get("reward")), number(piece.get("value")))


def number(value: Any) -> float | None:
    """A finite number; None for null and what JSON has no number for."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if not isinstance(value, int | float):
        raise InputError(f"has {value!r} where a number belongs")
    return float(value)
