"""The demo itself, as a miniature: every arm trains, is evaluated and reported."""

import json
import math

import pytest
import yaml

from sequencematch.demo import TASKS, demo_studies, run_demo
from sequencematch.evaluation import MODES
from sequencematch.training.run import Run

ARMS = ("mle", "bc", "sequencematch", "sequencematch_lecam")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder, quick=True)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_arm_is_trained_and_measured(demo):
    for task in TASKS:
        runs = lines(demo / task / "runs.jsonl")
        assert tuple(run["cell"] for run in runs) == ARMS
        assert all(run["steps"] == 4 and run["seconds"] > 0 and run["curve"] for run in runs)
        found = lines(demo / task / "results.jsonl")
        assert [(entry["cell"], entry["decoding"]) for entry in found] == [
            (arm, mode) for arm in ARMS for mode in MODES
        ]
        for entry in found:
            low, high = entry["intervals"]["accuracy"]
            assert 0 <= low <= entry["metrics"]["accuracy"] <= high <= 1
            assert all(math.isfinite(value) for value in entry["metrics"].values())


def test_only_arms_that_learned_to_delete_can_delete(demo):
    for task in TASKS:
        for entry in lines(demo / task / "results.jsonl"):
            if entry["cell"] == "mle" or entry["decoding"].endswith("no_deletion"):
                assert entry["metrics"]["deletion_rate"] == 0


def test_the_report_shows_both_studies(demo):
    page = (demo / "report.html").read_text()
    assert all(study.title in page for study in demo_studies())


def test_every_arm_leaves_its_model_and_a_configuration_that_runs(demo):
    folders = [path.parent for path in (demo / "store").glob("*/run.json")]
    assert len(folders) == 9
    for folder in folders:
        options = yaml.safe_load((folder / "config.yaml").read_text())
        assert Run.from_options(options).training.max_steps == 4
        assert (folder / "model.safetensors").exists()


def test_the_studies_themselves_can_be_run():
    for study in demo_studies():
        study.check()
        assert tuple(cell.name for cell in study.cells) == ARMS
