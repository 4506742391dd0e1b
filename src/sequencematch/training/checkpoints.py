"""What a checkpoint holds beyond transformers' own files, and one clear sentence when a checkpoint cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import TrainingArguments

from ..errors import InputError, reason_of


def _state_file(folder: str, args: TrainingArguments) -> Path:
    return Path(folder) / f"sequencematch_state_{args.process_index}.pt"


def save_extra_state(state: dict[str, Any], folder: str, args: TrainingArguments) -> None:
    """Write this rank's noise RNG and replay buffer into a checkpoint folder."""
    torch.save(state, _state_file(folder, args))


def load_extra_state(folder: str, args: TrainingArguments) -> dict[str, Any]:
    """Read what `save_extra_state` wrote."""
    return torch.load(_state_file(folder, args), weights_only=True)


@contextmanager
def no_empty_folder(folder: str | None) -> Iterator[None]:
    """A new folder in which nothing was written is gone afterwards: transformers makes one before anything else."""
    made_here = folder is not None and not Path(folder).exists()
    try:
        yield
    finally:
        if made_here:
            with suppress(OSError):
                Path(str(folder)).rmdir()  # only if it is empty


@contextmanager
def explain_load_failure(folder: str | None) -> Iterator[None]:
    """Turn whatever a loader raises into one sentence about the checkpoint."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the checkpoint '{folder}' is corrupt or incomplete ({reason_of(error)}); resume from an earlier one"
        ) from error


def check_checkpoint(folder: str, args: TrainingArguments) -> None:
    """Raise InputError if a checkpoint folder is missing, half-written or unreadable."""
    if not Path(folder).is_dir():
        raise InputError(f"there is no checkpoint folder '{folder}'; check the path")
    with explain_load_failure(folder):
        json.loads((Path(folder) / "trainer_state.json").read_text())
        for weights in Path(folder).glob("*.safetensors"):
            with safe_open(weights, framework="pt") as file:
                file.keys()
        load_extra_state(folder, args)
