"""What the tests of the command line share: tiny configurations, and how an error looks."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import yaml

from sequencematch.cli.main import main

# Trainers collect garbage several times each; not going through every imported module again makes that quick.
gc.freeze()

TASK_OPTIONS = {"degree": 2, "length": 1, "nodes": 8}
OPTIONS = {
    "task": "star",
    "task_options": TASK_OPTIONS,
    "train_size": 64,
    "test_size": 16,
    "from_scratch": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "deletions": {"<reset>": "all"},
    "objective": "sequencematch",
    "divergence": "lecam",
    "alpha": 0.05,
    "noise_source": "task",
    "noise_rate": 0.5,
    "max_steps": 5,
    "per_device_train_batch_size": 8,
    "learning_rate": 1.0e-2,
    "max_length": 32,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": False,
}
PROMPT = "abac|ac="


def write_config(folder: Path, **changes: Any) -> list[str]:
    """Arguments of `train`: a YAML file in `folder` with OPTIONS and `changes`; `output_dir` is `folder/out`."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), **OPTIONS, **changes}))
    return ["train", "--config", str(path)]


def write_rows(folder: Path, rows: list[dict]) -> str:
    """A JSON-lines file."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def error_of(capsys, arguments: list[str]) -> str:
    """What the command says when it fails: one sentence, an exit code that is not zero, and nothing else."""
    capsys.readouterr()
    assert main(arguments) != 0
    output = capsys.readouterr()
    assert output.out == ""
    # Progress bars end their lines with carriage returns or newlines of their own.
    lines = [line for line in output.err.replace("\r", "\n").splitlines() if "sequencematch: error:" in line]
    assert len(lines) == 1, output.err
    assert output.err.rstrip().endswith(lines[0])
    assert lines[0].startswith("sequencematch: error: ")
    assert "Traceback" not in output.err
    return lines[0]
