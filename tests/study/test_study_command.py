"""`sequencematch study`: what it says, writes and refuses."""

import pytest
import yaml
from study_files import tiny

from sequencematch.cli.main import main
from sequencematch.study import Study, miniature


@pytest.fixture
def file(tmp_path):
    """`file("name", **changes)`: the tiny study's file with other entries."""

    def write(name, **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny(**changes), sort_keys=False))
        return str(path)

    return write


def test_a_dry_run_says_what_is_missing_and_runs_nothing(file, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["study", file("mine"), "--dry_run", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in printed] == ["mine/mle 0", "mine/bc 0", "mine/mle 1", "mine/bc 1"]
    assert all(line.endswith("to train") for line in printed)
    assert not (tmp_path / "out").exists()


def test_results_report_and_tables_of_two_studies_that_share_runs(file, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    more = {"sampled": {"temperature": 1.0}, "hot": {"temperature": 2.0}}
    studies = [file("one", seeds=[0]), file("two", title="Hot stars", seeds=[0], decoding=more)]
    assert main(["study", *studies, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Tiny stars" in printed
    assert "Hot stars" in printed
    assert len(list((tmp_path / "out" / "store").glob("*/run.json"))) == 2
    for name, title in (("one", "Tiny stars"), ("two", "Hot stars")):
        assert title in (tmp_path / "out" / name / "report.html").read_text()
    assert main(["study", studies[1], "--dry_run", "--output", str(tmp_path / "out")]) == 0
    assert all(line.endswith("done") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ["--workers", "0"], "workers must be at least 1"),
        ({"arms": {"bc": {"objektive": "bc"}}}, [], "there is no option 'objektive'"),
        ({"colour": 1}, [], "a study has no 'colour'"),
    ],
)
def test_one_sentence_and_nothing_written(changes, flags, message, file, capsys, tmp_path):
    assert main(["study", file("mine", **changes), *flags, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_studies_of_one_name(file, capsys, tmp_path):
    (tmp_path / "other").mkdir()
    path = file("mine")
    other = tmp_path / "other" / "mine.yaml"
    other.write_text((tmp_path / "mine.yaml").read_text())
    assert main(["study", path, str(other)]) == 2
    assert "two studies have one name" in capsys.readouterr().err


def test_a_miniature_keeps_what_there_is_and_shrinks_what_takes_long():
    given = tiny(
        budget={"steps": 800},
        vary=[{"options": {"alpha": [0.1, 1.0], "bc_warmup_steps": [300]}}],
        pretrain={"max_steps": 2000, "objective": "mle"},
        arms={"a": {"bc_warmup_steps": 300, "rollout_steps": 0}},
    )
    found = miniature(given)
    assert (found["budget"], found["seeds"]) == ({"steps": 4}, [0])
    assert found["pretrain"] == {"max_steps": 4, "objective": "mle"}
    assert found["arms"] == {"a": {"bc_warmup_steps": 1, "rollout_steps": 0}}
    assert found["vary"][0]["options"] == {"alpha": [0.1], "bc_warmup_steps": [300]}
    assert given["options"]["train_size"] == 64  # what was given stays as it is
    assert Study.of("tiny", found).title == "Tiny stars"
