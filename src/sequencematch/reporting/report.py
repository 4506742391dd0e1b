"""The demo's report: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .charts import LINE_SPACE, accuracy_panels, accuracy_position, curve_panels
from .tables import MODE_NAMES, best_arm, check_results, cost, duration, finding, main_modes, main_rows, ordered_arms

COLOURS = 6
"""Number of arm colours in the style sheet; further arms start over."""


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the demo's results to `path` as one self-contained HTML page, and make its folder if need be.

    Modes, curves and transcripts that the results lack are left out, and keys that the report does not know are
    ignored. Raises InputError if the results have no tasks.
    """
    tasks = [_task_view(name, task) for name, task in check_results(results).items()]
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        tasks=tasks,
        date=results.get("date"),
        seconds=duration(results["seconds"]) if "seconds" in results else None,
        facts={"Versions": results.get("versions") or {}, "Hardware": results.get("hardware") or {}},
        config=json.dumps(results.get("config") or {}, indent=2, ensure_ascii=False, default=str),
        mode_names=MODE_NAMES,
        colours=COLOURS,
        line_space=LINE_SPACE,
        accuracy_ticks=[(accuracy_position(tick / 4), f"{tick / 4:g}") for tick in range(5)],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _task_view(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs of a task."""
    arms, rows = ordered_arms(task), main_rows(task)
    questions = {row.questions for row in rows if row.questions is not None}
    return {
        "id": name,
        "title": task.get("title", name),
        "description": task.get("description", ""),
        "rows": rows,
        "modes": main_modes(rows),
        "best": best_arm(rows),
        "finding": f"{finding(rows)} {cost(task)}",
        "questions": questions.pop() if len(questions) == 1 else None,
        "accuracy_panels": accuracy_panels(rows),
        "curve_panels": curve_panels(arms, rows),
        "transcripts": _transcript_views(arms, rows),
    }


def _transcript_views(arms: Mapping[str, Mapping[str, Any]], rows: Sequence[Any]) -> list[dict[str, Any]]:
    """The transcripts by arm and mode; of the arms that delete, the one most accurate under sampling stands open."""
    views = []
    for colour, (row, result) in enumerate(zip(rows, arms.values(), strict=True)):
        given = result.get("transcripts") or {}
        groups: list[dict[str, Any]] = [
            {"mode": name, "items": [_item(transcript) for transcript in given[mode]]}
            for mode, name in MODE_NAMES.items()
            if given.get(mode)
        ]
        if groups:
            score = row.accuracies["sampled"]
            items = [item for group in groups for item in group["items"]]
            deletes = any(piece["fate"] == "deletion" for item in items for piece in item["pieces"])
            rank = (deletes, score.value if score else -1.0)
            views.append({"colour": colour, "name": row.name, "groups": groups, "rank": rank})
    first = max(views, key=lambda view: view["rank"], default=None)
    for view in views:
        view["open"] = view is first
    return views


def _item(transcript: Mapping[str, Any]) -> dict[str, Any]:
    pieces = transcript.get("pieces") or []
    return {
        "prompt": transcript.get("prompt", ""),
        "expected": transcript.get("expected", ""),
        "completion": transcript.get("completion", ""),
        "correct": bool(transcript.get("correct")),
        "pieces": annotate(pieces),
        "ended": bool(pieces) and pieces[-1]["fate"] == "end",
    }


def annotate(pieces: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Add to each piece the text to show, and to each deleted one `by`, the index of the deletion that took it.

    A deletion called `<reset>` takes everything back, any other one token; one right before a token that stayed took
    whatever else was deleted.
    """
    shown: list[dict[str, Any]] = []
    standing: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        view = {"fate": piece["fate"], "name": piece["text"], "text": _visible(piece["text"]), "by": None}
        shown.append(view)
        if piece["fate"] == "deletion":
            resets = piece["text"].strip() == "<reset>"
            view["text"] = "⟲" if resets else "⌫"
            after = pieces[index + 1]["fate"] if index + 1 < len(pieces) else "end"
            everything = resets or after in ("kept", "end")
            while standing and standing[-1]["fate"] == "deleted":
                standing.pop()["by"] = index
                if not everything:
                    break
        elif piece["fate"] != "end":
            standing.append(view)
    return shown


def _visible(text: str) -> str:
    """A token's text with its white space in sight."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"
