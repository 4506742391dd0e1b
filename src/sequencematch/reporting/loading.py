"""Reading a study's folder, and one clear sentence where a file is missing or says what it cannot."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError
from .records import Names, about_study, comparison, completions, estimate, seed_values, training_run
from .study import Key, StudyResults

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

AGAIN = "run the study again, which writes its files anew"
COLUMNS = {
    "cell": "category",
    "seed": "int64",
    "decoding": "category",
    "question": "int64",
    "group": "category",
    "score": "float64",
    "actions": "int64",
}
"""What is read of questions.parquet; categories, for it may have millions of rows."""

WRONG = (KeyError, TypeError, ValueError, AttributeError)
"""What a file raises that no study has written; InputError is a ValueError."""


def find_studies(folder: Path) -> list[Path]:
    """`folder` if it holds a study's results, else its sub-folders that do, by name. Raises InputError if none does."""
    folder = Path(folder)
    if (folder / "study.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/study.json"))
    if not found:
        raise InputError(f"'{folder}' holds no results of a study (study.json); give the folder that a study wrote to")
    return found


def load_study(folder: str | Path) -> StudyResults:
    """Read the results that a study wrote.

    `study.json`, `results.jsonl` and `summary.jsonl` must be there; what another file would tell is left out of the
    report without it. Raises InputError for a file that is missing, damaged, or about other cells or ways of decoding.
    """
    folder = Path(folder)
    about = _text(folder / "study.json")
    try:
        fields = about_study(json.loads(about))
    except WRONG as error:
        raise InputError(f"'{folder / 'study.json'}' {_complaint(error)}; {AGAIN}") from error
    names = Names({cell.name for cell in fields["cells"]}, set(fields["decodings"]))
    values: dict[Key, dict[int, float]] = {}
    for line in _lines(folder / "results.jsonl", lambda line: seed_values(line, names)):
        for key, seed, value in line:
            values.setdefault(key, {})[seed] = value
    estimates = _lines(folder / "summary.jsonl", lambda line: estimate(line, names))
    compared = _optional(folder / "comparisons.jsonl", lambda line: comparison(line, names))
    written = _optional(folder / "transcripts.jsonl", lambda line: completions(line, names))
    return StudyResults(
        **fields,
        values=values,
        estimates=dict(entry for entry in estimates if entry),
        comparisons=dict(entry for entry in compared if entry),
        runs=tuple(_optional(folder / "runs.jsonl", lambda line: training_run(line, names))),
        answers=_answers(folder / "questions.parquet", names),
        completions=tuple(itertools.chain.from_iterable(written)),
    )


def _answers(path: Path, names: Names) -> pandas.DataFrame | None:
    if not path.exists():
        return None
    import pandas

    try:
        table = pandas.read_parquet(path, columns=list(COLUMNS))
        for cell in table["cell"].unique():
            names.cell(cell)
        for decoding in table["decoding"].unique():
            names.decoding(decoding)
        return table.astype(COLUMNS)
    except (OSError, *WRONG) as error:
        raise InputError(f"'{path}' {_complaint(error)}; {AGAIN}") from error


def _optional(path: Path, build: Callable[[Mapping[str, Any]], T]) -> list[T]:
    return _lines(path, build) if path.exists() else []


def _lines(path: Path, build: Callable[[Mapping[str, Any]], T]) -> list[T]:
    found = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(build(json.loads(line)))
        except WRONG as error:
            raise InputError(f"line {number} of '{path}' {_complaint(error)}; {AGAIN}") from error
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no '{path}'; give the folder that a study wrote to") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read ({error}); {AGAIN}") from error


def _complaint(error: Exception) -> str:
    """What is wrong with a file or line, to follow its name."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        return "is not valid JSON"
    if isinstance(error, KeyError):
        return f"has no {error}"
    return f"is not what a study writes ({' '.join(str(error).split())})"
