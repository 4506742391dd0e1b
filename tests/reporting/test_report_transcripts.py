"""Transcripts on the page: what was deleted, how pieces are coloured, and what is shown first."""

import re

import pytest
from report_pages import text_of, written
from study_folders import TITLES, read_lines, write_lines

from sequencematch.reporting import load_study
from sequencematch.reporting.replays import Scale, annotate, browse, scale
from sequencematch.reporting.rows import main_rows
from sequencematch.reporting.study import Piece


def test_transcripts_strike_what_was_deleted(page):
    answers = re.findall(r'<div class="pieces answer">(.*?)</div>', page, re.S)
    first = next(answer for answer in answers if answer.count("data-by") == 6)
    assert re.findall(r'<del [^>]*data-by="(\d+)"[^>]*>(.*?)</del>', first) == [
        ("3", "h"), ("3", "f"), ("3", "q"), ("7", "h"), ("7", "f"), ("7", "q"),
    ]  # fmt: skip
    assert re.findall(r'<span class="piece kept [^>]*>(.*?)</span>', first) == ["v", "w", "x"]
    assert re.findall(r'class="piece deletion [^>]*title="&lt;reset&gt;, reward [^>]*>(.)<', first) == ["⟲", "⟲"]


def test_pieces_have_their_exact_numbers_and_shades(page, star):
    text = re.search(r'<span class="piece kept r(\d) v(\d)" title="reward (\S+), value (\S+)">', page)
    reward, value = (float(number.replace("−", "-")) for number in text.groups()[2:])
    browser = browse(star, main_rows(star))
    group = browser.groups[0]
    assert group.cell_title == "MLE"
    assert (int(text[1]), int(text[2])) == (group.reward.level(reward), group.value.level(value))
    piece = star.completions[0].pieces[0]
    assert (reward, value) == pytest.approx((piece.reward, piece.value), abs=5e-4)


def test_colour_scales():
    found = scale([-3.0, -1.0, 0.0, 2.0], 0.0)
    assert found.middle == 0
    assert [found.level(value) for value in (-100, -found.reach, 0.0, found.reach, 100)] == [0, 0, 4, 8, 8]
    assert scale([1.0, 5.0, 9.0]).middle == 5
    assert scale([2.0, 2.0]).level(2.0) == 4
    assert scale([]) is None
    assert Scale(4.0, 2.5).labels == ("≤ 1.5", "4", "≥ 6.5")


def test_transcripts_without_rewards_have_no_colours(star_copy):
    lines = read_lines(star_copy / "transcripts.jsonl")
    for line in lines:
        for item in line["items"]:
            item |= {"correct": None, "expected": None}
            item["pieces"] = [
                {"text": piece["text"], "fate": piece["fate"], "reward": None} for piece in item["pieces"]
            ]
    write_lines(star_copy / "transcripts.jsonl", lines)
    html = written(star_copy)
    assert 'colouring">' not in html
    assert "✓ correct" not in html
    assert 'class="only-wrong"' not in html
    assert 'class="only-deletions"' in html
    assert "answer <code>vwx</code>" in html
    assert "expected <code>" not in html


def test_the_best_cell_that_deletes_stands_open(star, star_copy):
    group = next(group for group in browse(star, main_rows(star)).groups if group.open)
    assert (group.cell_title, group.decoding_title) == (TITLES["sequencematch"], "Sampled")
    lines = read_lines(star_copy / "transcripts.jsonl")
    write_lines(star_copy / "transcripts.jsonl", [line for line in lines if line["cell"] != "sequencematch"])
    study = load_study(star_copy)
    browser = browse(study, main_rows(study))
    assert [group.open for group in browser.groups].count(True) == 1
    assert next(group for group in browser.groups if group.open).cell_title in (
        TITLES["bc"],
        TITLES["sequencematch_lecam"],
    )
    assert browser.cells == [TITLES["mle"], TITLES["bc"], TITLES["sequencematch_lecam"]]
    assert browser.decodings[-1] == "Greedy exclude"


def test_too_many_transcripts_are_cut_evenly_and_said_so(star_copy, monkeypatch):
    monkeypatch.setattr("sequencematch.reporting.replays.MAX_PIECES", 1000)
    study = load_study(star_copy)
    groups = browse(study, main_rows(study)).groups
    (shown,) = {len(group.items) for group in groups}
    pieces = sum(len(item["pieces"]) for group in groups for item in group.items)
    assert 1 < shown < 14
    assert 800 < pieces <= 1000
    assert {group.left_out for group in groups} == {14 - shown}
    assert f"{14 - shown} further transcripts in the results are left out" in text_of(written(star_copy))


def test_wrong_and_truncated_transcripts_say_so(star_copy):
    piece = {"text": " \n", "fate": "kept"}
    item = {"prompt": "p", "expected": "vwx", "completion": " \n", "correct": False, "pieces": [piece]}
    lines = [{"cell": "mle", "seed": 0, "decoding": "greedy", "items": [item]}]
    write_lines(star_copy / "transcripts.jsonl", lines)
    text = text_of(written(star_copy))
    assert "✗ wrong" in text
    assert "expected vwx" in text
    assert "␣↵ cut" in text


def test_deletions_of_several_tokens_take_all_that_was_deleted():
    pieces = [Piece("a", "kept"), Piece("b", "deleted"), Piece("c", "deleted"), Piece("<bksp2>", "deletion")]
    assert [view["by"] for view in annotate([*pieces, Piece("d", "kept")])] == [None, 3, 3, None, None]
    assert [view["by"] for view in annotate([*pieces, Piece("<bksp>", "deletion")])] == [None, 4, 3, None, None]
    assert annotate([]) == []
