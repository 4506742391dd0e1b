"""Resuming from the command line: the newest checkpoint, and one clear sentence where there is none to go on from."""

import shutil

import pytest
from cli_runs import error_of, write_config

from sequencematch.cli.main import main

SAVING = {"max_steps": 40, "save_strategy": "steps", "save_steps": 20}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("as_flag", [True, False], ids=["flag", "yaml"])
def test_the_newest_complete_checkpoint_is_resumed_exactly(as_flag, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    cut(tmp_path / "out" / "checkpoint-40" / "optimizer.pt")
    cut(tmp_path / "out" / "model.safetensors")
    changes = {} if as_flag else {"resume_from_checkpoint": True}
    flags = ["--resume_from_checkpoint", "true"] if as_flag else []
    with pytest.warns(UserWarning, match="checkpoint-40; resuming from '.*checkpoint-20'"):
        assert main([*write_config(tmp_path, **SAVING, **changes), *flags]) == 0
    for name in ("model.safetensors", "checkpoint-40/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (trained / name).read_bytes()


def test_nothing_to_resume(capsys, tmp_path):
    arguments = write_config(tmp_path, resume_from_checkpoint=True)
    assert f"no complete checkpoint in '{tmp_path / 'out'}'" in error_of(capsys, arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.5}, "alpha: 0.05 (now 0.5); resume with the old value"),
        ({"task_seed": 3}, "other examples than this run has; resume with the old data"),
        ({"per_device_train_batch_size": 4}, "8 (now 4)"),
    ],
)
def test_another_run_is_not_resumed(changes, message, trained, capsys, tmp_path):
    checkpoint = str(trained / "checkpoint-20")
    arguments = write_config(tmp_path, **{**SAVING, "resume_from_checkpoint": checkpoint, **changes})
    text = error_of(capsys, arguments)
    assert message in text
    assert checkpoint in text
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_to(capsys, tmp_path):
    (tmp_path / "out").touch()
    assert "cannot be written to (File exists)" in error_of(capsys, write_config(tmp_path))
    arguments = write_config(tmp_path, output_dir=str(tmp_path / "out" / "below"))
    assert "cannot be written to (Not a directory)" in error_of(capsys, arguments)
