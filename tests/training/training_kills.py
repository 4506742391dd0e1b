"""Training runs that come to a bad end, each in a process of its own: killed, or with no room left on the disk.

Run as a script: `training_kills.py between|writing|full FOLDER`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_runs import ROLLOUTS, new_trainer, questions
from transformers import TrainerCallback

from sequencematch.errors import InputError
from sequencematch.tasks import build_tokenizer
from sequencematch.training.atomic import explain_write_failure

OPTIONS = {
    **ROLLOUTS,
    "max_steps": 7,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "save_strategy": "steps",
    "save_steps": 2,
}
"""Noise, rollouts, buffer, dropout, accumulation and, after the third step, an epoch's end."""
LIMITS = {"weights": 12_000, "optimizer": 30_000, "config": 600}
"""Bytes that a file may have once the first checkpoint is there, by what then does not fit."""
WRITERS = {
    "text": lambda path: path.write_text("some text"),
    "torch": lambda path: torch.save(torch.zeros(9), path),
    "large torch": lambda path: torch.save(torch.zeros(99_999), path),
    "safetensors": lambda path: save_file({"a": torch.zeros(9)}, path),
    "tokenizers": lambda path: build_tokenizer("abc").backend_tokenizer.save(str(path)),
}
"""How the libraries write that a checkpoint needs; each has errors of its own."""


def run_to_kill(folder: Path, **options):
    """The trainer of a run with OPTIONS."""
    return new_trainer(folder, train=questions(20)["train"], **{**OPTIONS, **options})


def kill() -> None:
    """End this process at once: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


class KillBetween(TrainerCallback):
    """Kills after the fifth step: the last checkpoint is the fourth's."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            kill()


def kill_while_writing(step: int) -> None:
    """Have the process die in the middle of that step's optimizer state, when the weights are written already."""
    save = torch.save

    def save_half(obj, file, *args, **kwargs):
        path = Path(str(file))
        save(obj, file, *args, **kwargs)
        if path.name == "optimizer.pt" and path.parent.name == f"checkpoint-{step}":
            path.write_bytes(path.read_bytes()[:1000])
            kill()

    torch.save = save_half


class FillDisk(TrainerCallback):
    """Lets no file grow beyond so many bytes after the first checkpoint: the kernel refuses, as for a full disk."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def on_save(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


@contextmanager
def file_limit(limit: int) -> Iterator[None]:
    """No file grows beyond so many bytes inside, nor after a callback has changed that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def run_full(folder: Path, limit: int) -> dict[str, object]:
    """What a run says that finds no room, and what it leaves in its folder."""
    trainer = run_to_kill(folder, callbacks=[FillDisk(limit)])
    with file_limit(resource.RLIM_INFINITY):
        message = complaint_of(trainer.train)
    return {"message": message, "left": sorted(path.name for path in folder.iterdir())}


def write_full(path: Path, writer: Callable) -> str:
    """What is said when a library finds no room."""

    def write():
        with file_limit(5), explain_write_failure("the model", "out"):
            writer(path)

    return complaint_of(write)


def complaint_of(action: Callable) -> str:
    """The one sentence with which something fails."""
    try:
        action()
    except InputError as error:
        return str(error)
    return "nothing"


def main(mode: str, folder: Path) -> None:
    """One run, or one for each of LIMITS and a write for each of WRITERS, printed as JSON."""
    if mode == "between":
        run_to_kill(folder, callbacks=[KillBetween()]).train()
    elif mode == "writing":
        kill_while_writing(4)
        run_to_kill(folder).train()
    else:
        writers = {name: write_full(folder / "written", writer) for name, writer in WRITERS.items()}
        runs = {name: run_full(folder / name, limit) for name, limit in LIMITS.items()}
        print(json.dumps({"writers": writers, "runs": runs}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
