"""Sample completions with their deletions in sight: for the terminal, Markdown, and the tables of experiment trackers.

A sample is a mapping with `step` (the optimizer step), `prompt` (text), `pieces` (what
`sequencematch.evaluation.transcribe` gives: mappings with `text` and `fate`), `completion` (the surviving text) and
`finish_reason`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Sample = Mapping[str, Any]

STYLES = {"kept": "", "deleted": "strike red", "deletion": "dim red", "end": "dim"}
COLUMNS = ("step", "prompt", "transcript", "completion", "deletions", "finish_reason")
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_JOINER = "\N{WORD JOINER}"


def completions_table(samples: Sequence[Sample]) -> Table:
    """The samples for the terminal: deleted tokens struck through in red, deletions and the end dim."""
    table = Table("step", "prompt", "written", "completion", "end", title="Completions", show_lines=True)
    for column in table.columns:
        column.overflow = "fold"
    for sample in samples:
        written = Text.assemble(*((text, STYLES[fate]) for fate, text in _runs(sample)))
        cells = (Text(_clean(sample[name])) for name in ("prompt", "completion", "finish_reason"))
        prompt, completion, reason = cells
        table.add_row(str(sample["step"]), prompt, written, completion, reason)
    return table


def completions_markdown(samples: Sequence[Sample]) -> str:
    """The samples as a Markdown table in which `~~deleted~~` text stands where it was written.

    Whatever has a meaning in Markdown or HTML is escaped, line breaks are shown as `↵`.
    """
    lines = ["| step | prompt | written | completion | end |", "| ---: | --- | --- | --- | --- |"]
    for sample in samples:
        written = "".join(_struck(text) if fate == "deleted" else markdown_text(text) for fate, text in _runs(sample))
        prompt, completion, reason = (markdown_text(sample[name]) for name in ("prompt", "completion", "finish_reason"))
        lines.append(f"| {sample['step']} | {prompt} | {written} | {completion} | {reason} |")
    return "\n".join(lines) + "\n"


def completions_rows(samples: Sequence[Sample]) -> tuple[list[str], list[list[Any]]]:
    """The samples as column names and rows of plain values, for the tables of Weights & Biases and Trackio.

    In `transcript`, deleted text stands between `~~` and is followed by the deletions that took it.
    """
    rows = []
    for sample in samples:
        transcript = "".join(f"~~{text}~~" if fate == "deleted" else text for fate, text in _runs(sample))
        deletions = sum(piece["fate"] == "deletion" for piece in sample["pieces"])
        prompt, completion = _clean(sample["prompt"]), _clean(sample["completion"])
        rows.append([int(sample["step"]), prompt, transcript, completion, deletions, sample["finish_reason"]])
    return list(COLUMNS), rows


def report_completions(
    samples: Sequence[Sample],
    step: int,
    report_to: Sequence[str],
    tensorboard_writer: Any = None,
    console: Console | None = None,
) -> None:
    """Print the samples, and send them to the trackers, under the name `completions` as TRL's trainers do.

    Args:
        samples: what to show; nothing happens if there are none.
        step: the optimizer step, for TensorBoard.
        report_to: names of trackers; of these `wandb`, `trackio` and `tensorboard` get the samples.
        tensorboard_writer: torch's `SummaryWriter`; without one TensorBoard gets nothing.
        console: where to print; the standard output if not given.
    """
    if not samples:
        return
    (console or Console()).print(completions_table(samples))
    if "tensorboard" in report_to and tensorboard_writer is not None:
        tensorboard_writer.add_text("completions", completions_markdown(samples), step)
    columns, rows = completions_rows(samples)
    if "wandb" in report_to:
        import wandb

        if wandb.run is not None:
            wandb.log({"completions": wandb.Table(columns=columns, data=rows)})
    if "trackio" in report_to:
        import pandas
        import trackio

        trackio.log({"completions": trackio.Table(dataframe=pandas.DataFrame(rows, columns=columns))})


def markdown_text(text: Any) -> str:
    """Any value as the text of a Markdown table's cell: nothing in it is taken for markup."""
    escaped = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", _clean(text))
    return escaped.replace("\n", "↵").replace("\t", "⇥")


def _runs(sample: Sample) -> list[tuple[str, str]]:
    """`(fate, text)` of the sample's pieces, neighbours of one fate joined."""
    pieces = ((piece["fate"], _clean(piece["text"])) for piece in sample["pieces"])
    joined = ((fate, "".join(text for _, text in run)) for fate, run in groupby(pieces, key=lambda piece: piece[0]))
    return [(fate, text) for fate, text in joined if text]


def _struck(text: str) -> str:
    """Deleted text in Markdown.

    Markdown takes `~~` for what it is only beside a letter, not beside a space or punctuation, with which many tokens
    begin: an invisible joiner stands in for the letter.
    """
    before = "" if text[0].isalnum() else _JOINER
    after = "" if text[-1].isalnum() else _JOINER
    return f"~~{before}{markdown_text(text)}{after}~~"


def _clean(text: Any) -> str:
    """Text without control characters, which a model may write and a terminal would obey."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\r\n", "\n"))
