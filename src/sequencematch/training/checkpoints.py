"""Reading checkpoints: whether one is whole, which is the newest, what it holds beyond transformers' own files.

A checkpoint's record, `sequencematch_run.json`, is written last. It lists every file with its size, and says how many
processes wrote the checkpoint and with which options and data. Each process adds a file of its own,
`sequencematch_state_<rank>.pt`.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError, reason_of
from ..rollouts.buffer import merged_state

logger = logging.getLogger(__name__)

RECORD = "sequencematch_run.json"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write a checkpoint's record, with the sizes of the files that are there: all others must be complete."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    (folder / RECORD).write_text(json.dumps({**record, "files": files}, indent=2))


def check_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The record of a checkpoint folder; raises InputError if it is missing, incomplete, or of no use to resume."""
    if not Path(folder).is_dir():
        raise InputError(f"there is no checkpoint folder '{folder}'; check the path")
    with explain_load_failure(folder):
        record = json.loads((Path(folder) / RECORD).read_text())
        for name, size in record["files"].items():
            found = (Path(folder) / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes in place of {size}")
    if record["only_model"]:
        raise InputError(
            f"the checkpoint '{folder}' holds the model alone (save_only_model), from which no run can go on; start a "
            "new run from its weights"
        )
    return record


def newest_checkpoint(output_dir: str | Path) -> str:
    """The newest checkpoint in a folder that is complete; warns of newer ones that are not, and names them.

    Raises InputError if there is none.
    """
    newest, damaged = find_newest(output_dir)
    names = ", ".join(damaged)
    if newest is None:
        which = f" (damaged: {names})" if damaged else ""
        raise InputError(
            f"there is no complete checkpoint in '{output_dir}' to resume from{which}; check output_dir, or start "
            "without resume_from_checkpoint"
        )
    if damaged:
        text = f"passing over damaged or incomplete checkpoints: {names}; resuming from '{newest}'"
        warnings.warn(text, stacklevel=3)
    return newest


def find_newest(output_dir: str | Path) -> tuple[str | None, list[str]]:
    """The newest checkpoint in a folder from which a run can go on, and the names of newer ones from which none can."""
    damaged: list[str] = []
    for folder in _checkpoints(Path(output_dir)):
        try:
            check_checkpoint(folder)
        except InputError:
            damaged.append(folder.name)
        else:
            return str(folder), damaged
    return None, damaged


def _checkpoints(output_dir: Path) -> list[Path]:
    """The folders with a checkpoint's name, the newest first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    named = [(path, path.name.removeprefix(prefix)) for path in output_dir.glob(f"{prefix}*")]
    found = [(int(step), path) for path, step in named if step.isdecimal() and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


@contextmanager
def explain_load_failure(folder: str | Path | None) -> Iterator[None]:
    """Turn whatever a loader raises into one sentence about the checkpoint."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the checkpoint '{folder}' is corrupt or incomplete ({reason_of(error)}); resume from an earlier one"
        ) from error


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


def save_rank_state(state: dict[str, Any], folder: str | Path, rank: int) -> None:
    """Write what process `rank` alone knows into a checkpoint folder."""
    torch.save(state, _state_file(folder, rank))


def load_rank_state(folder: str | Path, rank: int, processes: int, seed: int, step: int) -> dict[str, Any]:
    """What process `rank` of `processes` goes on with from a checkpoint that any number of processes wrote.

    With the same number it is what this process wrote. Otherwise process r takes over the rollouts of all i with
    i mod `processes` == r, which may be none, and its random numbers start anew from (`seed`, `rank`, `step`): the run
    goes on, but not exactly, and the log says so.
    """
    written_by = check_checkpoint(folder)["processes"]
    if written_by == processes:
        return _read_state(folder, rank)
    logger.warning(
        "the checkpoint '%s' was written by %d processes and is read by %d: rollouts are shared out and random numbers "
        "start anew, so this is not exactly the run that was stopped",
        folder,
        written_by,
        processes,
    )
    generators = [np.random.default_rng(seeds) for seeds in fresh_seeds(seed, rank, step).spawn(2)]
    rng, sampling = (json.dumps(generator.bit_generator.state) for generator in generators)
    buffers = [_read_state(folder, i)["batches"]["buffer"] for i in range(rank, written_by, processes)]
    return {"batches": {"rng": rng, "buffer": merged_state(buffers, sampling)}}


def fresh_seeds(seed: int, rank: int, step: int) -> np.random.SeedSequence:
    """Where random numbers start that cannot be those of the run before."""
    return np.random.SeedSequence([seed, rank, step])


def _read_state(folder: str | Path, rank: int) -> dict[str, Any]:
    return torch.load(_state_file(folder, rank), weights_only=True)


def _state_file(folder: str | Path, rank: int) -> Path:
    return Path(folder) / f"sequencematch_state_{rank}.pt"
