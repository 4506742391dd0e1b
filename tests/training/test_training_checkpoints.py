"""Checkpoints: which are kept, which are refused, where they may be written, and who reads whose part of one."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import ROLLOUTS, logs, new_trainer, questions, same_weights, weights
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

from sequencematch.errors import InputError
from sequencematch.rollouts import ReplayBuffer
from sequencematch.training.atomic import check_writable, explain_write_failure
from sequencematch.training.checkpoints import check_checkpoint, load_rank_state

SAVING = {**ROLLOUTS, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of four steps, with the checkpoints of the second and the fourth."""
    folder = tmp_path_factory.mktemp("saved")
    new_trainer(folder, **{**SAVING, "save_steps": 2}).train()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class SeeFolder(TrainerCallback):
    """Notes what is in the output folder after each save."""

    def __init__(self):
        self.seen = []

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(names(Path(args.output_dir)))


def test_old_checkpoints_go_once_the_new_one_is_there(tmp_path):
    see = SeeFolder()
    new_trainer(tmp_path, **SAVING, save_total_limit=2, callbacks=[see]).train()
    assert see.seen == [[f"checkpoint-{n}" for n in range(max(1, step - 1), step + 1)] for step in (1, 2, 3, 4)]


def test_the_best_checkpoint_stays_and_is_loaded_in_the_end(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1}
    trainer = new_trainer(tmp_path, **SAVING, **best, optim="sgd", lr_scheduler_type="linear", max_grad_norm=0.0)
    trainer.args.greater_is_better = True  # of a loss that falls, the first is best
    trainer.train()
    losses = [entry["eval_loss"] for entry in logs(trainer) if "eval_loss" in entry]
    assert losses[0] == max(losses)
    assert names(tmp_path) == ["checkpoint-1"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1").state_dict()
    assert same_weights(kept, weights(trainer))


def test_a_checkpoint_of_the_same_step_is_replaced(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-4" / "of the old run").touch()
    again = new_trainer(tmp_path, **{**SAVING, "save_steps": 2})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert names(tmp_path / "checkpoint-4") == names(saved / "checkpoint-4")


def test_a_checkpoint_is_pushed_when_it_is_complete(tmp_path, monkeypatch):
    pushed = []

    def push(trainer, folder):
        check_checkpoint(folder)
        pushed.append(folder)

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    trainer = new_trainer(tmp_path, **SAVING, max_steps=2)
    trainer.args.push_to_hub = True  # from the start it would look for the hub
    trainer.train()
    assert pushed == [str(tmp_path / f"checkpoint-{step}") for step in (1, 2)]


def test_the_model_alone_is_no_checkpoint_to_resume_from(tmp_path):
    options = {**SAVING, "max_steps": 2}
    new_trainer(tmp_path, **options, save_only_model=True).train()
    assert "optimizer.pt" not in names(tmp_path / "checkpoint-2")
    with pytest.raises(InputError, match="holds the model alone"):
        new_trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(InputError, match="no complete checkpoint in"):
        new_trainer(tmp_path, **options).train(resume_from_checkpoint=True)


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_optimizer(folder):
    (folder / "optimizer.pt").unlink()


def drop_record(folder):
    (folder / "sequencematch_run.json").unlink()


@pytest.mark.parametrize("damage", [cut_weights, drop_optimizer, drop_record], ids=lambda damage: damage.__name__)
def test_damaged_checkpoints_are_passed_over(damage, saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-old").mkdir()
    resumed = new_trainer(tmp_path, **ROLLOUTS)
    with pytest.warns(UserWarning, match="checkpoint-4; resuming from '.*checkpoint-2'"):
        resumed.train(resume_from_checkpoint="true")
    end = AutoModelForCausalLM.from_pretrained(saved / "checkpoint-4").state_dict()
    assert same_weights(end, weights(resumed))


def test_without_a_complete_checkpoint_nothing_is_resumed(saved, tmp_path):
    with pytest.raises(InputError, match=r"no complete checkpoint in '.*' to resume from; check output_dir"):
        new_trainer(tmp_path, **ROLLOUTS).train(resume_from_checkpoint=True)
    shutil.copytree(saved / "checkpoint-4", tmp_path / "checkpoint-4")
    cut_weights(tmp_path / "checkpoint-4")
    with pytest.raises(InputError, match=r"\(damaged: checkpoint-4\)"):
        new_trainer(tmp_path, **ROLLOUTS).train(resume_from_checkpoint=True)
    assert new_trainer(tmp_path, **ROLLOUTS, max_steps=1).train(resume_from_checkpoint="false").global_step == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.5}, r"alpha: 0.05 \(now 0.5\)"),
        (
            {"noise_source": "none", "gamma": 0.9},
            r"gamma: 0.998 \(now 0.9\), noise_source: \"uniform\" \(now \"none\"\)",
        ),
        ({"learning_rate": 1.0}, r"learning_rate: 0.01 \(now 1.0\)"),
        ({"optim": "sgd"}, "optim"),
        ({"seed": 1}, r"seed: 42 \(now 1\)"),
        ({"max_length": 20}, "max_length"),
        ({"deletions": {"<reset>": "all"}}, "deletions: null"),
        ({"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps x processes: 8 \(now 16\)"),
        ({"train": questions(20)["train"]}, "was made on 64 examples, and this run has 20"),
        ({"train": questions(128)["train"].select(range(64, 128))}, "was made on other examples than this run has"),
    ],
)
def test_another_run_does_not_go_on_from_a_checkpoint(changes, message, saved, tmp_path):
    trainer = new_trainer(tmp_path, **{**ROLLOUTS, **changes})
    before = weights(trainer)
    with pytest.raises(InputError, match=message):
        trainer.train(resume_from_checkpoint=str(saved / "checkpoint-2"))
    assert same_weights(weights(trainer), before)


def test_what_leaves_the_curve_alone_may_change(saved, tmp_path):
    changes = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "generation_batch_size": 3,
        "tree_attention": "dense",
        "logging_steps": 2,
        "max_steps": 5,
        "train": questions()["train"].to_iterable_dataset(),
    }
    trainer = new_trainer(tmp_path, **{**ROLLOUTS, **changes})
    trainer.train(resume_from_checkpoint=str(saved / "checkpoint-2"))
    assert trainer.state.global_step == 5


def below_a_file(folder):
    (folder / "file").touch()
    return folder / "file" / "out"


def a_file(folder):
    (folder / "out").touch()
    return folder / "out"


def without_permission(folder):
    (folder / "closed").mkdir(mode=0o500)
    return folder / "closed" / "out"


@pytest.mark.parametrize("make", [below_a_file, a_file, without_permission], ids=lambda make: make.__name__)
def test_a_folder_that_cannot_be_written_to_is_found_out_first(make, tmp_path):
    if make is without_permission and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    with pytest.raises(InputError, match=r"output_dir '.*out' cannot be written to"):
        new_trainer(make(tmp_path), **ROLLOUTS)


def test_looking_whether_a_folder_can_be_written_to_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    (tmp_path / "a").mkdir()
    check_writable(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="a bug"), explain_write_failure("the model", "out"):
        raise RuntimeError("a bug")


def as_of_two(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint as two processes would have written it, with every other rollout each."""
    shutil.copytree(checkpoint, folder)
    state = torch.load(folder / "sequencematch_state_0.pt", weights_only=True)
    buffer = state["batches"]["buffer"]
    for rank in range(2):
        part = {name: value if name == "generator" else value[rank::2] for name, value in buffer.items()}
        content = {**state, "batches": {**state["batches"], "buffer": part}}
        torch.save(content, folder / f"sequencematch_state_{rank}.pt")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    record = json.loads((folder / "sequencematch_run.json").read_text())
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "sequencematch_run.json"}
    (folder / "sequencematch_run.json").write_text(json.dumps({**record, "processes": 2, "files": files}))
    return folder


def rollouts_of(state: dict) -> list[list[int]]:
    return [actions.tolist() for actions in state["batches"]["buffer"]["actions"]]


def test_fewer_processes_take_over_all_rollouts(saved, tmp_path, caplog):
    one = saved / "checkpoint-4"
    two = as_of_two(one, tmp_path / "two")
    state = torch.load(one / "sequencematch_state_0.pt", weights_only=True)
    assert load_rank_state(two, 1, 2, 42, 4)["batches"]["rng"] == state["batches"]["rng"]
    assert rollouts_of(load_rank_state(two, 1, 2, 42, 4)) == rollouts_of(state)[1::2]
    assert not caplog.text
    merged = load_rank_state(two, 0, 1, 42, 4)
    assert "written by 2 processes and is read by 1" in caplog.text
    assert rollouts_of(merged) == rollouts_of(state)[::2] + rollouts_of(state)[1::2]
    assert merged["batches"]["rng"] != state["batches"]["rng"]
    resumed = new_trainer(tmp_path / "run", **ROLLOUTS, max_steps=6)
    resumed.train(resume_from_checkpoint=str(two))
    assert resumed.state.global_step == 6


def test_more_processes_begin_with_empty_buffers(saved, caplog):
    one = saved / "checkpoint-4"
    first, second = (load_rank_state(one, rank, 2, 42, 4) for rank in range(2))
    state = torch.load(one / "sequencematch_state_0.pt", weights_only=True)
    assert rollouts_of(first) == rollouts_of(state)
    assert rollouts_of(second) == []
    assert "written by 1 processes" in caplog.text
    buffer = ReplayBuffer(4)
    buffer.load_state_dict(second["batches"]["buffer"])
    assert len(buffer) == 0
    assert len({first["batches"]["rng"], second["batches"]["rng"], state["batches"]["rng"]}) == 3
