"""The report: one file that needs nothing else, with what the results say and no more."""

import json
import re
import shutil
from html import unescape

import pandas
import pytest
from report_pages import parse, text_of, written
from study_folders import DECODINGS, TITLES, read_lines, write_lines, write_study

from sequencematch.cli.report import run
from sequencematch.errors import InputError
from sequencematch.reporting import load_study, study_tables, write_report
from sequencematch.reporting.rows import main_rows

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def test_page_loads_nothing_from_elsewhere(page):
    tags = parse(page)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert "src" not in attributes
        assert "http" not in attributes.get("href", "") or tag == "a"
        assert tag != "use" or attributes["href"].startswith("#shape-")
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", page)
    assert [attributes for tag, attributes in tags if tag == "script"] == [{}]


def test_every_link_and_description_has_its_target(page):
    check_targets(parse(page))


def check_targets(tags):
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        target = attributes.get("href", "#shape-0")
        assert not target.startswith("#") or target[1:] in ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids


def test_every_chart_and_field_has_words(page):
    tags = parse(page)
    charts = [attributes for tag, attributes in tags if tag == "svg" and "chart" in attributes.get("class", "")]
    told = [attributes for attributes in charts if "aria-hidden" not in attributes]
    assert len(told) > 20
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in told)
    assert len(charts) - len(told) == 5 * (4 + 1) + 2 * (3 + 1)  # whiskers, which have their words beside them
    boxes = [attributes for tag, attributes in tags if attributes.get("class", "").split()[:1] == ["scroll"]]
    assert all(attributes["aria-label"] and attributes["tabindex"] == "0" for attributes in boxes)


def test_page_has_every_section_arm_and_number(page, star):
    text = text_of(page)
    sections = ("Results", "Sensitivity", "Cost", "Training", "Groups of questions", "Transcripts", "How it was made")
    for part in (
        *sections,
        *TITLES.values(),
        "Star graphs",
        "Arithmetic in a base",
        "2026-03-14",
        "2.99.1",
        "21 min 52 s",
    ):
        assert part in text
    for row in main_rows(star):
        for score in row.scores.values():
            assert score.value in text
            assert score.interval in text
        assert row.time in text
    assert "over 3 seeds" in text
    assert "over 240 questions" in text
    assert "1,000 steps per run · 3 seeds · 4 cells · 240 questions" in text
    assert "deletions switched off" in text
    assert re.search(r'<td class="h\d" title="alpha [^"]*">0\.\d+<span aria-hidden="true"> ▲</span></td>', page)


def test_config_is_shown_as_json(page, star_folder):
    shown = unescape(re.search(r"<pre>(.*?)</pre>", page, re.S)[1])
    assert json.loads(shown) == json.loads((star_folder / "study.json").read_text())["config"]


def test_significant_differences_are_marked(star_copy):
    lines = read_lines(star_copy / "comparisons.jsonl")
    for line in lines:
        line["p_adjusted"] = 0.01 if (line["cell"], line["decoding"]) == ("bc", "sampled") else 0.2
    write_lines(star_copy / "comparisons.jsonl", lines)
    html = written(star_copy)
    table = re.search(r"<tbody>(.*?)</tbody>", html, re.S)[1]
    assert table.count("▲") == 1
    assert table.count("▼") == 0
    (row,) = [row for row in table.split("<tr>") if "▲" in row]
    assert "BC with deletions</th>" in row
    assert "significantly above MLE" in row
    assert re.search(r'class="won" title="\+0\.\d+ \[[^"]*\], adjusted p = 0.01"', row)


def test_hostile_text_is_escaped(tmp_path):
    odd = [HOSTILE, f"b{HOSTILE}"]
    cells = [{"cell": "mle", "arm": "mle", "factors": {}}, {"cell": HOSTILE, "arm": HOSTILE, "factors": {}}]
    for first in (0.1, 0.2, 0.4):
        for second in (1.0, 2.0):
            cells.append({"arm": HOSTILE, "factors": {odd[0]: first, odd[1]: second}})
        cells.append({"arm": HOSTILE, "factors": {"rate": first, "kind": HOSTILE}})
    for cell in cells:
        cell["cell"] = ", ".join([cell["arm"], *(f"{name}={value}" for name, value in cell["factors"].items())])
    decodings = {"sampled": {HOSTILE: HOSTILE}, HOSTILE: {}}
    about = dict.fromkeys(("name", "title", "description", "date"), HOSTILE)
    about |= {name: {HOSTILE: HOSTILE} for name in ("versions", "hardware", "config", "titles")}
    about |= {"decodings": decodings, "budget": {"unit": HOSTILE, "amount": 3}}
    accuracy = {(cell["cell"], decoding): 0.5 for cell in cells for decoding in decodings}
    folder = tmp_path / "hostile"
    write_study(folder, about, cells, accuracy, (0, 1), odd)
    lines = read_lines(folder / "transcripts.jsonl")
    for line in lines:
        pieces = [{"text": HOSTILE, "fate": fate} for fate in ("kept", "deleted", "deletion", "end")]
        item = {"prompt": HOSTILE, "expected": HOSTILE, "completion": HOSTILE, "correct": False, "pieces": pieces}
        line["items"] = [item] * 3
    write_lines(folder / "transcripts.jsonl", lines)
    found = read_lines(folder / "summary.jsonl")
    write_lines(folder / "summary.jsonl", [*found, *({**line, "metric": HOSTILE} for line in found)])
    html = written(folder)
    tags = parse(html)
    assert html.count("&lt;script&gt;alert(1)") > 100
    assert len([tag for tag, _ in tags if tag == "script"]) == 1
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in tags)
    assert study_tables(load_study(folder))


def test_what_is_missing_is_left_out(star_copy):
    for name in ("comparisons.jsonl", "runs.jsonl", "questions.parquet", "transcripts.jsonl"):
        (star_copy / name).unlink()
    about = json.loads((star_copy / "study.json").read_text())
    few = {key: about[key] for key in ("name", "baseline", "cells", "decodings", "metrics")}
    (star_copy / "study.json").write_text(json.dumps(few))
    kept = [
        line
        for line in read_lines(star_copy / "summary.jsonl")
        if line["metric"] == "accuracy" and line["decoding"] != "greedy" and line["cell"] != "bc"
    ]
    write_lines(star_copy / "summary.jsonl", kept)
    html = written(star_copy)
    check_targets(parse(html))
    assert '<th scope="col">Greedy exclude</th>' in html
    assert '<th scope="col">Greedy</th>' not in html
    for heading in ("Sensitivity", "Cost", "Training", "Groups of questions", "Transcripts"):
        assert f"{heading}</h3>" not in html
    assert "no differences were tested" in html
    assert study_tables(load_study(star_copy))


def test_a_study_without_any_measurement_does_not_fail(star_copy):
    for name in ("results", "summary", "comparisons"):
        (star_copy / f"{name}.jsonl").write_text("")
    html = written(star_copy)
    parse(html)
    assert "MLE" in text_of(html)
    assert study_tables(load_study(star_copy))


def test_no_groups_no_section(star_copy):
    table = pandas.read_parquet(star_copy / "questions.parquet")
    table.assign(group="").to_parquet(star_copy / "questions.parquet")
    assert "Groups of questions</h3>" not in written(star_copy)


def test_an_old_page_stays_whole_if_the_new_one_fails(star_copy, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    (star_copy / "summary.jsonl").unlink()
    with pytest.raises(InputError, match=r"no '.*summary.jsonl'"):
        write_report([star_copy], path)
    assert path.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_a_page_that_cannot_be_written(star_folder, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "report.html", tmp_path):
        with pytest.raises(InputError, match=r"the report '.*' cannot be written \(.*\); choose another file"):
            write_report([star_folder], path)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_command(star_folder, grid_folder, tmp_path, capsys):
    shutil.copytree(star_folder, tmp_path / "b_star")
    shutil.copytree(grid_folder, tmp_path / "a_grid")
    run([str(tmp_path)])
    assert capsys.readouterr().out == f"Report: {tmp_path / 'report.html'}\n"
    text = text_of((tmp_path / "report.html").read_text())
    assert text.index("Arithmetic in a base") < text.index("Star graphs")
    run([str(tmp_path / "b_star"), str(tmp_path), "--output", str(tmp_path / "some" / "page.html")])
    html = (tmp_path / "some" / "page.html").read_text()
    assert html.count("<section ") == 2  # a study that is named twice is shown once
    assert text_of(html).index("Star graphs") < text_of(html).index("Arithmetic in a base")
    with pytest.raises(InputError, match="the following arguments are required"):
        run([])
    with pytest.raises(InputError, match="holds no results of a study"):
        run([str(tmp_path / "nowhere")])


def test_every_way_of_decoding_of_the_fixture_is_on_the_page(page):
    assert page.count('class="findings"') == 2
    assert len(DECODINGS) + 2 == len(re.findall(r"<dt>[^<]*</dt><dd>(?:Above|Below|No )", page))


def colours(css):
    return dict(re.findall(r"--(\w+(?:-\w+)?): (#[0-9a-f]{6})", css))


def contrast(one, other):
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_everything_can_be_read_in_both_schemes(page):
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    light, dark = colours(light), colours(dark)
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for name in ("text", "muted", "link", "right", "wrong"):
            assert contrast(scheme[name], scheme["card"]) >= 4.5, name
            assert contrast(scheme[name], scheme["page"]) >= 4.5, name
        assert contrast(scheme["deleted"], scheme["deleted-back"]) >= 4.5
        for index in range(9):
            text = "faint-text" if index < 5 else "strong-text"
            assert contrast(scheme[f"h{index}"], scheme[text]) >= 4.5, f"h{index}"
            assert contrast(scheme[f"m{index}"], scheme["text"]) >= 4.5, f"m{index}"
        for index in range(6):
            assert contrast(scheme[f"c{index}"], scheme["card"]) >= 3, f"c{index}"
