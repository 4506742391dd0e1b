"""Reading a study's folder: everything that is there, and one sentence for what cannot be read."""

import json
import math

import pandas
import pytest
from study_folders import DECODINGS, TITLES, read_lines, write_lines

from sequencematch.errors import InputError
from sequencematch.reporting import find_studies, load_study
from sequencematch.reporting.study import Comparison, Estimate


def test_everything_is_read(star, star_folder):
    assert star.title == "Star graphs"
    assert [cell.name for cell in star.cells] == list(TITLES)
    assert [cell.title for cell in star.cells] == list(TITLES.values())
    assert star.baseline is star.cells[0]
    assert list(star.decodings) == list(DECODINGS)
    assert (star.metric, star.decoding, star.better) == ("accuracy", "sampled", 1)
    assert star.budget == "1,000 steps"
    assert (star.seeds, star.questions, star.seconds) == ((0, 1, 2), 240, 1312.4)
    line = next(line for line in read_lines(star_folder / "summary.jsonl") if line["metric"] == "actions")
    assert star.estimates["mle", "sampled", "actions"] == Estimate(line["mean"], line["low"], line["high"], 3)
    line = read_lines(star_folder / "comparisons.jsonl")[0]
    key = (line["cell"], line["decoding"], line["metric"])
    assert star.comparisons[key] == Comparison(line["difference"], line["low"], line["high"], line["p_adjusted"])
    line = read_lines(star_folder / "results.jsonl")[0]
    assert star.values["mle", line["decoding"], "accuracy"][0] == line["metrics"]["accuracy"]
    assert len(star.answers) == 4 * 5 * 3 * 240
    assert len(star.completions) == 4 * 5 * 14
    assert (star.training_steps(star.baseline), star.training_seconds(star.baseline)) == (1000, 71.0)


@pytest.mark.parametrize("name", ["comparisons.jsonl", "runs.jsonl", "questions.parquet", "transcripts.jsonl"])
def test_most_files_may_be_missing(name, star_copy):
    (star_copy / name).unlink()
    load_study(star_copy)


@pytest.mark.parametrize("name", ["study.json", "results.jsonl", "summary.jsonl"])
def test_files_that_must_be_there(name, star_copy):
    (star_copy / name).unlink()
    with pytest.raises(InputError, match=rf"^there is no '.*{name}'; give the folder that a study wrote to$"):
        load_study(star_copy)


@pytest.mark.parametrize("name", ["results", "summary", "comparisons", "runs", "transcripts"])
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"cell": "mle", ', "is not valid JSON"),
        ("[1]", "is not what a study writes"),
        ('{"cell": "nobody"}', "names the cell 'nobody', which study.json does not list"),
        ("{}", "has no 'cell'"),
    ],
)
def test_damaged_lines(name, line, complaint, star_copy):
    path = star_copy / f"{name}.jsonl"
    path.write_text(path.read_text() + line)
    number = len(path.read_text().splitlines())
    with pytest.raises(InputError, match=f"^line {number} of '.*{name}.jsonl' {complaint}.*; run the study again"):
        load_study(star_copy)


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("results", {"decoding": "beam"}, "names the way of decoding 'beam'"),
        ("results", {"metrics": {"accuracy": "high"}}, "has 'high' where a number belongs"),
        ("summary", {"mean": "high"}, "has 'high' where a number belongs"),
        ("transcripts", {"items": [{"prompt": "a", "completion": "b"}]}, "has no 'pieces'"),
        (
            "transcripts",
            {"items": [{"prompt": "a", "completion": "b", "pieces": [{"text": "b", "fate": "lost"}]}]},
            "unknown fate 'lost'",
        ),
    ],
)
def test_lines_that_no_study_writes(name, changes, complaint, star_copy):
    lines = read_lines(star_copy / f"{name}.jsonl")
    write_lines(star_copy / f"{name}.jsonl", [*lines, {**lines[0], **changes}])
    with pytest.raises(InputError, match=f"^line {len(lines) + 1} of .*{complaint}"):
        load_study(star_copy)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cells": [{"arm": "mle"}]}, "has no 'cell'"),
        ({"baseline": "nobody"}, "has no cell of its baseline 'nobody'"),
        ({"metrics": []}, "has no way of decoding or no metric"),
        ({"decodings": {}}, "has no way of decoding or no metric"),
        ({"seeds": 3}, "is not what a study writes"),
    ],
)
def test_a_study_that_no_study_writes(changes, complaint, star_copy):
    about = json.loads((star_copy / "study.json").read_text())
    (star_copy / "study.json").write_text(json.dumps({**about, **changes}))
    with pytest.raises(InputError, match=f"^'.*study.json' {complaint}.*; run the study again"):
        load_study(star_copy)


def test_damaged_files(star_copy):
    (star_copy / "questions.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"^'.*questions.parquet' is not what a study writes"):
        load_study(star_copy)
    pandas.DataFrame({"cell": ["mle"]}).to_parquet(star_copy / "questions.parquet")
    with pytest.raises(InputError, match=r"^'.*questions.parquet' .*; run the study again"):
        load_study(star_copy)
    (star_copy / "study.json").write_text("{")
    with pytest.raises(InputError, match=r"^'.*study.json' is not valid JSON"):
        load_study(star_copy)
    (star_copy / "study.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"^'.*study.json' cannot be read"):
        load_study(star_copy)


def test_questions_of_unknown_cells(star_copy):
    table = pandas.read_parquet(star_copy / "questions.parquet")
    table["cell"] = table["cell"].replace("bc", "nobody")
    table.to_parquet(star_copy / "questions.parquet")
    with pytest.raises(InputError, match=r"^'.*questions.parquet' names the cell 'nobody', which study.json does not"):
        load_study(star_copy)


def test_what_is_no_number_is_not_there(star_copy):
    lines = read_lines(star_copy / "summary.jsonl")
    lines[0] |= {"low": None, "high": math.nan}
    lines[1] |= {"mean": math.nan}
    write_lines(star_copy / "summary.jsonl", lines)
    study = load_study(star_copy)
    keys = [(line["cell"], line["decoding"], line["metric"]) for line in lines]
    assert study.estimates[keys[0]].ends == (lines[0]["mean"], lines[0]["mean"])
    assert keys[1] not in study.estimates
    assert len(study.estimates) == len(lines) - 1


@pytest.mark.parametrize(("metric", "ends"), [("accuracy", (0.0, 1.0)), ("actions", (-0.2, 1.3))])
def test_intervals_of_shares_are_cut_to_what_shares_can_be(metric, ends, star_copy):
    path = star_copy / "summary.jsonl"
    lines = [{**line, "low": -0.2, "high": 1.3} for line in read_lines(path)]
    write_lines(path, lines)
    assert load_study(star_copy).estimates["mle", "sampled", metric].ends == ends


def test_a_baseline_may_be_named_by_its_arm_and_comes_first(star_copy):
    about = json.loads((star_copy / "study.json").read_text())
    about["cells"] = about["cells"][::-1]
    (star_copy / "study.json").write_text(json.dumps(about))
    study = load_study(star_copy)
    assert study.baseline.name == study.cells[0].name == "mle"
    assert len(study.cells) == 4


def test_folders_of_studies(star_folder, star_copy, tmp_path):
    assert find_studies(star_folder) == [star_folder]
    assert find_studies(tmp_path) == [star_copy]
    with pytest.raises(InputError, match=r"holds no results of a study \(study.json\); give the folder"):
        find_studies(tmp_path / "nowhere")
