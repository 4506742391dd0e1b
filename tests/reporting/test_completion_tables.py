"""Sample tables: what was deleted is in sight everywhere, and what a model writes is never taken for markup."""

import html
import io
import json
import re

import markdown
import pytest
from rich.console import Console

from sequencematch.reporting.completions import (
    completions_markdown,
    completions_rows,
    completions_table,
    markdown_text,
    report_completions,
)

HOSTILE = "a|b *c* ~~d~~ <img src=x> [e](f) `g` _h_ $i$ &amp; \\\x1b[31m\r\nj"


def sample(*pieces, step=3, prompt="one plus one is", finish_reason="eos"):
    """A sample of `(text, fate)` pieces."""
    kept = "".join(text for text, fate in pieces if fate == "kept")
    return {
        "step": step,
        "prompt": prompt,
        "pieces": [{"text": text, "fate": fate} for text, fate in pieces],
        "completion": kept,
        "finish_reason": finish_reason,
    }


RETRY = sample(
    (" tw", "kept"),
    ("e", "deleted"),
    ("lve", "deleted"),
    ("<bksp>", "deletion"),
    ("<bksp>", "deletion"),
    ("o", "kept"),
    ("<eos>", "end"),
)


def rendered(table):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    console.print(table)
    return console.file.getvalue()


def cells(markdown_table):
    """The cells of a Markdown table's rows, as they are written."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown_table.splitlines()[2:]]


def test_the_terminal_strikes_deleted_text_through():
    shown = rendered(completions_table([RETRY]))
    assert "\x1b[9;31melve\x1b[0m" in shown
    assert "\x1b[2;31m<bksp><bksp>\x1b[0m" in shown
    assert "eos" in shown
    assert "one plus one is" in shown


def test_a_terminal_is_not_given_orders():
    shown = rendered(completions_table([sample((HOSTILE, "kept"), prompt=HOSTILE)]))
    assert "\x1b[31m\r" not in shown
    assert "�[31m" in shown


def test_markdown_strikes_deleted_text_through():
    ((step, prompt, written, completion, reason),) = cells(completions_markdown([RETRY]))
    assert (step, prompt, completion, reason) == ("3", "one plus one is", "two", "eos")
    assert written == "tw~~elve~~&#60;bksp&#62;&#60;bksp&#62;o&#60;eos&#62;"


@pytest.mark.parametrize("deleted", [" the", ",", " ", "\n", "(", "~"])
def test_deleted_spaces_and_punctuation_are_struck_through_as_well(deleted):
    """GitHub's rule: the text within begins and ends with what is neither white space nor punctuation."""
    ((_, _, written, _, _),) = cells(completions_markdown([sample(("word", "kept"), (deleted, "deleted"))]))
    inside = re.fullmatch("word~~(.+)~~", written)[1]
    assert re.fullmatch(r"[\w⁠].*[\w⁠]", inside)
    assert inside.replace("⁠", "") == markdown_text(deleted)


def test_markdown_in_a_sample_stays_text():
    """Read back by a Markdown parser, every cell has just the text that it was made from, in one line."""
    table = completions_markdown([sample((HOSTILE, "kept"), prompt=HOSTILE)])
    assert len(table.splitlines()) == 3
    found = re.findall("<td>(.*?)</td>", markdown.markdown(table, extensions=["tables"]))
    assert len(found) == 4
    assert html.unescape(found[0]) == HOSTILE.replace("\r\n", "↵").replace("\x1b", "�")
    assert found[0] == found[1] == found[2]
    assert "<" not in found[0]


def test_rows_are_plain_values():
    columns, rows = completions_rows([RETRY, sample(("x", "kept"), step=4, finish_reason="max_actions")])
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        {
            "step": 3,
            "prompt": "one plus one is",
            "transcript": " tw~~elve~~<bksp><bksp>o<eos>",
            "completion": " two",
            "deletions": 2,
            "finish_reason": "eos",
        },
        {
            "step": 4,
            "prompt": "one plus one is",
            "transcript": "x",
            "completion": "x",
            "deletions": 0,
            "finish_reason": "max_actions",
        },
    ]


def test_an_action_without_text_leaves_no_marks():
    empty = sample(("", "deleted"), ("<bksp>", "deletion"))
    assert "~~" not in completions_markdown([empty])
    assert completions_rows([empty])[1][0][2] == "<bksp>"


def test_pieces_are_those_of_a_transcript(tokenizer):
    from sequencematch.evaluation import transcribe
    from sequencematch.mdp import ActionSpace, Deletion

    tokenizer.add_special_tokens({"extra_special_tokens": ["<bksp>"]})
    deletion = tokenizer.convert_tokens_to_ids("<bksp>")
    space = ActionSpace(len(tokenizer), tokenizer.eos_token_id, (Deletion(deletion, 1),))
    actions = [*tokenizer("ab")["input_ids"], deletion, *tokenizer("c")["input_ids"], tokenizer.eos_token_id]
    given = {**sample(), "pieces": transcribe(actions, tokenizer, space)}
    assert completions_rows([given])[1][0][2] == f"a~~b~~<bksp>c{tokenizer.eos_token}"


def console():
    return Console(file=io.StringIO(), width=120)


# TensorBoard's own copy of html5lib warns.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_markdown_table(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(tmp_path))
    output = console()
    report_completions([RETRY], 3, ["tensorboard"], writer, output)
    report_completions([RETRY], 6, ["tensorboard"], writer, output)
    report_completions([RETRY], 9, ["none"], writer, output)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload().Tensors("completions/text_summary")
    assert [event.step for event in events] == [3, 6]
    text = events[0].tensor_proto.string_val[0].decode()
    assert text == completions_markdown([RETRY])
    assert "<td>tw~~elve~~<bksp><bksp>o<eos></td>" in html.unescape(markdown_to_safe_html(text))
    assert output.file.getvalue().count("Completions") == 3


def test_no_samples_are_no_report(tmp_path):
    output = console()
    report_completions([], 3, ["wandb", "trackio", "tensorboard"], None, output)
    assert output.file.getvalue() == ""


def test_weights_and_biases_gets_a_table(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    report_completions([RETRY], 3, ["wandb"], None, console())  # no run: nothing to log to
    with wandb.init(project="test", dir=str(tmp_path)):
        report_completions([RETRY], 3, ["wandb"], None, console())
    (path,) = tmp_path.rglob("completions*.table.json")
    columns, rows = completions_rows([RETRY])
    assert json.loads(path.read_text()) == {"columns": columns, "data": rows}


def test_trackio_gets_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    trackio.init(project="test", name="run", embed=False, auto_log_cpu=False)
    report_completions([RETRY], 3, ["trackio"], None, console())
    trackio.finish()
    (logged,) = SQLiteStorage.get_logs("test", "run")
    columns, (row,) = completions_rows([RETRY])
    assert logged["completions"]["_value"] == [dict(zip(columns, row, strict=True))]
