"""The demo's report: one file that needs nothing else, with what the results say and no more."""

import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from sequencematch.errors import InputError
from sequencematch.reporting import demo_tables, write_report
from sequencematch.reporting.charts import MAX_POINTS, curve_panels, ticks
from sequencematch.reporting.report import annotate
from sequencematch.reporting.tables import ARM_NAMES, MODE_NAMES, best_arm, duration, finding, main_rows

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
VOID = {"meta", "br", "link", "img", "input", "hr"}


def score(accuracy, low, high, **rest):
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "n": 400,
        "deletion_rate": 0.0,
        "mean_run": 0.0,
        "actions": 3.0,
        "truncated": 0.0,
        "seconds": 1.0,
        **rest,
    }


def piece(text, fate):
    return {"text": text, "fate": fate}


def transcript(*pieces, correct=True, completion="vw"):
    return {"prompt": "enhf|ew=", "expected": "vw", "completion": completion, "correct": correct, "pieces": [*pieces]}


RETRIED = transcript(
    piece("h", "deleted"),
    piece("f", "deleted"),
    piece("<reset>", "deletion"),
    piece("v", "kept"),
    piece("q", "deleted"),
    piece("<bksp>", "deletion"),
    piece("w", "kept"),
    piece("<eos>", "end"),
)


def arm(sampled, position=0):
    return {
        "sampled": sampled,
        "sampled_no_deletion": score(0.301 + position / 1000, 0.26, 0.35),
        "greedy": score(0.401 + position / 1000, 0.35, 0.45),
        "greedy_no_deletion": score(0.501 + position / 1000, 0.45, 0.55),
        "greedy_exclude": score(0.601 + position / 1000, 0.55, 0.65),
        "seconds": 71.4 + position,
        "steps": 1500 + position,
        "curve": [
            {"step": step, "loss": 3 / step, "objective/bc": 2 / step, "backspace/rate": 0.1, "surprise": "text"}
            for step in range(10, 1510, 10)
        ],
        "transcripts": {"sampled": [RETRIED], "greedy_exclude": [RETRIED]},
        "surprise": {"more": 1},
    }


@pytest.fixture
def results():
    arms = {
        "mle": arm(score(0.335, 0.291, 0.383)),
        "bc": arm(score(0.953, 0.932, 0.971, deletion_rate=0.2931, actions=7.25), 1),
        "sequencematch": arm(score(0.975, 0.955, 0.986, deletion_rate=0.3131, actions=7.75), 2),
        "sequencematch_lecam": arm(score(0.37, 0.324, 0.418), 3),
    }
    level = {name: arm(score(0.74, 0.70, 0.78)) for name in ARM_NAMES}
    return {
        "tasks": {
            "star": {"title": "Star graphs", "description": "Find the path.", "arms": arms},
            "arithmetic": {"title": "Addition", "description": "Add numbers.", "arms": level},
        },
        "versions": {"sequencematch": "0.1.0", "torch": "2.99.1"},
        "hardware": {"device": "cpu", "threads": 2},
        "config": {"star": {"mle": {"objective": "bc", "learning_rate": 0.001}}},
        "date": "2026-03-14 15:09 UTC",
        "seconds": 1312.4,
        "surprise": [1, 2],
    }


@pytest.fixture
def page(tmp_path):
    def write(results):
        path = tmp_path / "new" / "report.html"
        write_report(results, path)
        return path.read_text(encoding="utf-8")

    return write


class Tags(HTMLParser):
    """Every start tag with its attributes; fails where tags do not nest."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page):
    parser = Tags()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.tags


def text_of(page):
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_page_loads_nothing_from_elsewhere(results, page):
    html = page(results)
    tags = parse(html)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert "src" not in attributes
        assert "http" not in attributes.get("href", "") or tag == "a"
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", html)
    assert [attributes for tag, attributes in tags if tag == "script"] == [{}]


def test_page_has_every_arm_and_number(results, page):
    text = text_of(page(results))
    for name in (*ARM_NAMES.values(), *MODE_NAMES.values(), "Star graphs", "Find the path.", "Addition"):
        assert " ".join(name.split()) in text
    for number in ("0.335", "[0.291, 0.383]", "0.975", "[0.955, 0.986]", "0.303", "0.403", "0.503", "0.603"):
        assert number in text
    for number in ("31.3%", "7.8", "1 min 13 s", "1,502", "400 test questions", "21 min 52 s", "2.99.1", "2026-03-14"):
        assert number in text


def test_config_is_shown_as_json(results, page):
    html = page(results)
    shown = re.search(r"<pre>(.*?)</pre>", html, re.S)[1].replace("&#34;", '"')
    assert json.loads(shown) == results["config"]


def test_hostile_text_is_escaped(results, page):
    star = results["tasks"]["star"]
    star["title"] = star["description"] = HOSTILE
    star["arms"][HOSTILE] = arm(score(0.5, 0.4, 0.6))
    star["arms"]["bc"]["transcripts"]["sampled"] = [
        {
            **transcript(piece(HOSTILE, "kept"), piece(HOSTILE, "deleted"), piece(HOSTILE, "deletion")),
            "prompt": HOSTILE,
            "expected": HOSTILE,
            "completion": HOSTILE,
            "correct": False,
        }
    ]
    for key in ("versions", "hardware", "config"):
        results[key] = {HOSTILE: HOSTILE}
    results["date"] = HOSTILE
    html = page(results)
    tags = parse(html)
    assert "&lt;script&gt;alert(1)" in html
    assert len([tag for tag, _ in tags if tag == "script"]) == 1
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in tags)
    assert list(demo_tables(results))


def test_finding_names_the_arms_with_disjoint_intervals(results, page):
    rows = main_rows(results["tasks"]["star"])
    said = "BC with deletions and SequenceMatch (chi2-mixture, rollouts) are above MLE under sampling with disjoint 95%"
    assert finding(rows).startswith(said)
    assert best_arm(rows) == "sequencematch"
    html = page(results)
    assert said in text_of(html)
    assert html.count('<tr class="best">') == 1


def test_overlapping_intervals_emphasise_nothing(results, page):
    results["tasks"].pop("star")
    rows = main_rows(results["tasks"]["arithmetic"])
    assert finding(rows) == "Under sampling, no arm's 95% interval is disjoint from MLE's."
    assert best_arm(rows) is None
    assert '<tr class="best">' not in page(results)


def test_touching_intervals_are_not_disjoint(results):
    task = results["tasks"]["arithmetic"]
    task["arms"]["bc"]["sampled"] = score(0.82, 0.78, 0.86)
    assert best_arm(main_rows(task)) is None
    task["arms"]["bc"]["sampled"] = score(0.82, 0.781, 0.86)
    assert best_arm(main_rows(task)) == "bc"
    assert "BC with deletions is above MLE" in finding(main_rows(task))


def test_the_best_arm_is_not_replaced_by_one_that_is_disjoint(results):
    task = results["tasks"]["arithmetic"]
    task["arms"]["bc"]["sampled"] = score(0.82, 0.781, 0.86)
    task["arms"]["sequencematch"]["sampled"] = score(0.83, 0.75, 0.90)
    assert best_arm(main_rows(task)) is None


def test_finding_also_says_what_is_worse(results):
    task = results["tasks"]["arithmetic"]
    task["arms"]["sequencematch_lecam"]["sampled"] = score(0.5, 0.45, 0.55)
    rows = main_rows(task)
    assert finding(rows) == "SequenceMatch (lecam) is below MLE under sampling with disjoint 95% intervals."
    assert best_arm(rows) is None


def test_finding_without_a_baseline(results):
    task = results["tasks"]["star"]
    del task["arms"]["mle"]
    assert "no MLE arm" in finding(main_rows(task))
    assert best_arm(main_rows(task)) is None


def test_transcripts_strike_what_was_deleted(results, page):
    html = page(results)
    first = re.search(r'<div class="pieces answer">(.*?)</div>', html, re.S)[1]
    assert re.findall(r'<del data-piece data-by="(\d+)">(.*?)</del>', first) == [("2", "h"), ("2", "f"), ("5", "q")]
    assert re.findall(r'<span class="kept" data-piece>(.*?)</span>', first) == ["v", "w"]
    assert re.findall(r'class="deletion"[^>]*title="(.*?)">(.)<', first) == [
        ("&lt;reset&gt;", "⟲"),
        ("&lt;bksp&gt;", "⌫"),
    ]
    assert html.count("✓ correct") == 16
    assert "✗ wrong" not in html


def test_wrong_and_truncated_transcripts_say_so(results, page):
    mle = results["tasks"]["star"]["arms"]["mle"]
    mle["transcripts"] = {"sampled": [transcript(piece(" \n", "kept"), correct=False, completion=" \n")]}
    text = text_of(page(results))
    assert "✗ wrong" in text
    assert "expected vw" in text
    assert "␣↵ cut" in text


def test_the_most_accurate_arm_that_deletes_stands_open(results, page):
    del results["tasks"]["arithmetic"]
    arms = results["tasks"]["star"]["arms"]
    arms["sequencematch"]["transcripts"] = {"sampled": [transcript(piece("v", "kept"))]}
    assert re.findall(r'<details class="box" open>\s*<summary><span [^>]*></span>(.*?)<', page(results)) == [
        "BC with deletions"
    ]


def test_deletions_of_several_tokens_take_all_that_was_deleted():
    pieces = [piece("a", "kept"), piece("b", "deleted"), piece("c", "deleted"), piece("<bksp2>", "deletion")]
    assert [view["by"] for view in annotate([*pieces, piece("d", "kept")])] == [None, 3, 3, None, None]
    assert [view["by"] for view in annotate([*pieces, piece("<bksp>", "deletion")])] == [None, 4, 3, None, None]
    assert annotate([]) == []


def test_what_is_missing_is_left_out(results, page):
    sparse = copy.deepcopy(results)
    for task in sparse["tasks"].values():
        for result in task["arms"].values():
            del result["greedy_no_deletion"], result["curve"], result["transcripts"]
    del sparse["tasks"]["star"]["arms"]["mle"]["sampled_no_deletion"]
    del sparse["tasks"]["star"]["arms"]["mle"]["seconds"]
    for key in ("versions", "hardware", "config", "date", "seconds"):
        del sparse[key]
    html = page(sparse)
    parse(html)
    assert '<th scope="col">Greedy, deletion forbidden</th>' not in html
    assert '<th scope="col">Sampled, deletion forbidden</th>' in html
    assert "Transcripts" not in html
    assert "Training</h3>" not in html
    assert list(demo_tables(sparse))


def test_bare_arms_do_not_fail(page):
    results = {"tasks": {"star": {"arms": {"mle": {}, "other": None}}}}
    assert "other" in text_of(page(results))
    assert demo_tables(results)[0].row_count == 2


@pytest.mark.parametrize("results", [{}, {"tasks": {}}, {"tasks": None}, None])
def test_results_without_tasks_are_refused(results, tmp_path):
    with pytest.raises(InputError, match="no 'tasks'"):
        write_report(results, tmp_path / "report.html")
    with pytest.raises(InputError, match="no 'tasks'"):
        demo_tables(results)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_tables_show_the_numbers_whole(results, width):
    console = Console(record=True, width=width, file=io.StringIO())
    for table in demo_tables(results):
        console.print(table)
    text = console.export_text()
    for part in ("Star graphs", "Addition", "SequenceMatch", "(lecam)", "0.975", ".95–.99", "31.3%", "1,502", "73 s"):
        assert part in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_terminal_tables_take_text_literally(results):
    results["tasks"]["star"]["title"] = "[bold]title[/nonsense]"
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(demo_tables(results)[0])
    assert "[bold]title[/nonsense]" in console.export_text()


def test_curves_leave_out_what_is_not_finite_and_stay_small():
    curve = [{"step": step, "loss": float("nan") if step % 2 else float(step)} for step in range(10_000)]
    task = {"arms": {"mle": {"curve": curve}, "bc": {"curve": [{"step": 1, "loss": 1.0}]}}}
    (panel,) = curve_panels(task["arms"], main_rows(task))
    assert panel.title == "Training loss"
    assert panel.colours == [(0, "MLE")]
    points = panel.lines[0].points.split()
    assert len(points) <= MAX_POINTS
    assert all(0 <= float(number) <= 1000 for point in points for number in point.split(","))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.97), (-3.2, 7.9), (5, 5), (0, 0), (1e-7, 3e-7), (0, 9999)])
def test_ticks_enclose_the_range(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 7
    assert marks == sorted(set(marks))


def test_durations():
    assert duration(0.5) == "0.5 s"
    assert duration(71.4) == "1 min 11 s"
    assert duration(59.7) == "59.7 s"
    assert duration(3725) == "1 h 2 min"
    assert duration(None) == "–"
