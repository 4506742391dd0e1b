"""The demo itself, as a miniature: every arm trains, is evaluated and reported."""

import json
import math

import pytest
import yaml

from sequencematch.demo import load_recipes, run_demo
from sequencematch.demo.recipes import ARMS, TASKS
from sequencematch.training.run import Run

MODES = ("sampled", "sampled_no_deletion", "greedy", "greedy_no_deletion", "greedy_exclude")
NUMBERS = ("accuracy", "low", "high", "n", "deletion_rate", "actions")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, quick=True)


def test_results_have_the_documented_form(demo):
    folder, results = demo
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(results) >= {"tasks", "versions", "hardware", "config"}
    assert tuple(results["tasks"]) == TASKS
    for task in results["tasks"].values():
        assert tuple(task["arms"]) == ARMS
        for arm in task["arms"].values():
            assert arm["steps"] == 4
            assert arm["seconds"] > 0
            assert len(arm["curve"]) >= 1
            for mode in MODES:
                assert all(math.isfinite(arm[mode][number]) for number in NUMBERS)
                assert arm[mode]["n"] == 16
                assert 0 <= arm[mode]["low"] <= arm[mode]["accuracy"] <= arm[mode]["high"] <= 1


def test_only_arms_that_learned_to_delete_can_delete(demo):
    _, results = demo
    for task in results["tasks"].values():
        for name, arm in task["arms"].items():
            assert bool(arm["deletions"]) == (name != "mle")
            assert arm["sampled_no_deletion"]["deletion_rate"] == arm["greedy_no_deletion"]["deletion_rate"] == 0
        assert task["arms"]["mle"]["sampled"]["deletion_rate"] == 0


def test_report_shows_every_arm(demo):
    folder, results = demo
    page = (folder / "report.html").read_text()
    assert all(task["title"] in page for task in results["tasks"].values())


def test_every_arm_leaves_its_model_and_a_configuration_that_runs(demo):
    folder, results = demo
    for name, options in results["config"].items():
        saved = yaml.safe_load((folder / name / "config.yaml").read_text())
        assert saved == options
        assert Run.from_options(saved).training.max_steps == 4
        assert (folder / name / "model.safetensors").exists()


def test_arms_of_a_task_have_equal_steps_and_questions():
    for recipe in load_recipes():
        for key in (
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "train_size",
            "task_options",
        ):
            values = [{**recipe.shared, **options}.get(key) for options in recipe.arms.values()]
            assert all(value == values[0] for value in values), (recipe.name, key)
