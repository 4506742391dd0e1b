"""A run that is stopped, at any time and in any way, and resumed is the run that was never stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_kills import LIMITS, WRITERS, run_to_kill
from training_runs import ROLLOUTS, logs, new_trainer, questions, same_weights, weights
from transformers import TrainerCallback

SECONDS = 240


def history(trainer):
    """What was logged, without what a clock decides."""
    return [
        {name: x for name, x in entry.items() if not name.endswith(("_runtime", "_per_second"))}
        for entry in logs(trainer)
    ]


def assert_same_run(resumed, whole):
    assert history(resumed) == history(whole)
    assert same_weights(weights(resumed), weights(whole))
    kept, found = whole.batches.state_dict(), resumed.batches.state_dict()
    assert kept["rng"] == found["rng"]
    assert kept["buffer"]["policy_version"] == found["buffer"]["policy_version"]
    assert kept["buffer"]["generator"] == found["buffer"]["generator"]


def compare(folder, step, **options):
    """Train to the end, and again from the checkpoint of a step on."""
    options = {**ROLLOUTS, "max_steps": 7, "lr_scheduler_type": "linear", **options}
    whole = new_trainer(folder / "whole", **{**options, "save_strategy": "steps", "save_steps": step})
    whole.train()
    resumed = new_trainer(folder / "resumed", **options)
    assert not same_weights(weights(resumed), weights(whole))
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{step}"))
    assert_same_run(resumed, whole)
    return whole


@pytest.mark.parametrize("noise_source", ["uniform", "model", "rollout", "task"])
def test_resuming_equals_never_having_stopped(noise_source, tmp_path):
    """Noise, rollouts, buffer, dropout and an epoch's end in play; the checkpoint falls between two refreshes."""
    compare(
        tmp_path,
        3,
        noise_source=noise_source,
        train=questions(20)["train"],
        max_staleness=3,
        bc_warmup_steps=1,
        bc_anneal_steps=3,
        bc_final_weight=0.2,
    )


def test_resuming_within_an_epoch_of_accumulated_batches_and_between_two_logs(tmp_path):
    whole = compare(
        tmp_path,
        4,
        train=questions(20)["train"],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        logging_steps=3,
    )
    assert [entry["step"] for entry in history(whole)] == [3, 6]


@pytest.mark.parametrize(("rows", "accumulation", "step"), [(64, 2, 3), (24, 1, 3), (24, 1, 4)])
def test_resuming_a_stream(rows, accumulation, step, tmp_path):
    """24 rows are read again after three steps: the checkpoint is the last before, and the first after."""
    stream = questions(rows)["train"].to_iterable_dataset().shuffle(seed=1, buffer_size=16)
    compare(
        tmp_path,
        step,
        train=stream,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )


def test_going_on_with_more_of_a_stream(tmp_path):
    stream = questions(64)["train"].to_iterable_dataset()
    options = {**ROLLOUTS, "train": stream}
    new_trainer(tmp_path, **{**options, "max_steps": 4, "save_strategy": "steps", "save_steps": 4}).train()
    longer = new_trainer(tmp_path, **{**options, "max_steps": 6})
    longer.train(resume_from_checkpoint=True)
    straight = new_trainer(tmp_path / "straight", **{**options, "max_steps": 6})
    straight.train()
    assert same_weights(weights(longer), weights(straight))


def test_resuming_from_the_latest_checkpoint(tmp_path):
    trainer = new_trainer(tmp_path, **{**ROLLOUTS, "save_strategy": "steps", "save_steps": 2})
    trainer.train()
    again = new_trainer(tmp_path, **{**ROLLOUTS, "max_steps": 6})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    straight = new_trainer(tmp_path / "straight", **{**ROLLOUTS, "max_steps": 6})
    straight.train()
    assert same_weights(weights(again), weights(straight))


def test_evaluating_changes_nothing(tmp_path):
    def final(**options):
        trainer = new_trainer(tmp_path, **{**ROLLOUTS, **options})
        trainer.train()
        return weights(trainer)

    assert same_weights(final(), final(eval_strategy="steps", eval_steps=1))


def start(mode: str, folder: Path) -> subprocess.Popen:
    """One of the runs of `training_kills` in a process of its own."""
    script = Path(__file__).with_name("training_kills.py")
    return subprocess.Popen(
        [sys.executable, str(script), mode, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = run_to_kill(tmp_path_factory.mktemp("uninterrupted"))
    trainer.train()
    return trainer


class NoteBeginning(TrainerCallback):
    """Notes at which step a run begins."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "newest", "unfinished"), [("between", 4, []), ("writing", 2, ["_tmp-checkpoint-4"])])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(mode, newest, unfinished, uninterrupted, tmp_path):
    process = start(mode, tmp_path)
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL, stderr
    checkpoints = [f"checkpoint-{step}" for step in range(2, newest + 1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*checkpoints, *unfinished])
    begin = NoteBeginning()
    resumed = run_to_kill(tmp_path, callbacks=[begin])
    resumed.train(resume_from_checkpoint=True)
    assert begin.step == newest
    assert_same_run(resumed, uninterrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in (2, 4, 6, 7)]


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(uninterrupted, tmp_path):
    process = start("full", tmp_path)
    output, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    results = json.loads(output.splitlines()[-1])
    assert results["writers"].keys() == WRITERS.keys()
    for message in results["writers"].values():
        assert re.fullmatch(
            r"the model cannot be written in 'out' \(.+\); .*there is no complete checkpoint yet", message
        )
    for name, found in results["runs"].items():
        folder = tmp_path / name
        assert found["message"].startswith(f"the checkpoint of step 4 cannot be written in '{folder}' (")
        assert found["message"].endswith(f"resume from the last good checkpoint, '{folder}/checkpoint-2'")
        assert "\n" not in found["message"]
        assert found["left"] == ["checkpoint-2"]
    resumed = run_to_kill(tmp_path / "weights")
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(resumed, uninterrupted)


def test_the_limits_are_between_the_sizes_of_the_files_that_they_tell_apart(uninterrupted):
    folder = Path(uninterrupted.args.output_dir) / "checkpoint-2"
    assert LIMITS["weights"] < (folder / "model.safetensors").stat().st_size
    assert LIMITS["optimizer"] > (folder / "model.safetensors").stat().st_size
    assert LIMITS["optimizer"] < (folder / "optimizer.pt").stat().st_size
    assert LIMITS["config"] < (folder / "config.json").stat().st_size
