"""Writing checkpoints so that one is there whole or not at all, and one clear sentence where a disk refuses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import InputError, reason_of
from .checkpoints import find_newest

UNFINISHED = "_tmp-checkpoint-"
"""How folders of checkpoints in the making begin: nothing takes them for checkpoints, and pushes to the hub leave out
what begins with an underscore."""

TORCH_SIGNS = ("PytorchStreamWriter", "inline_container", "iostream error")
"""By which of them torch's bare RuntimeError is about a file, depends on how much of it there was room for."""


def publish(staged: Path, final: Path) -> None:
    """Give a complete checkpoint its final name, for good; one that has this name is replaced.

    `staged` lies alone in a folder of its own beside `final`; that folder goes.
    """
    for path in (*staged.rglob("*"), staged):
        _sync(path)
    if final.exists():
        # No folder can take the place of another that is not empty; killed in between, the checkpoint before is newest.
        final.rename(staged.parent / "replaced")
    staged.rename(final)
    _sync(final.parent)
    shutil.rmtree(staged.parent)


def _sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before anything relies on them."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    elif os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # not every file system can
            os.fsync(folder)
        os.close(folder)


def remove_unfinished(output_dir: str | Path) -> None:
    """Remove what killed runs have left of checkpoints in the making."""
    for folder in Path(output_dir).glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(output_dir: str | Path) -> None:
    """Raise InputError if no file can be written in a folder, which need not exist. Leaves nothing behind."""
    folder = Path(output_dir).absolute()
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"1")
            file.flush()
    except OSError as error:
        raise InputError(
            f"output_dir '{output_dir}' cannot be written to ({error.strerror}); choose another, or make it writable"
        ) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def explain_write_failure(what: str, output_dir: str | Path) -> Iterator[None]:
    """Turn the errors by which libraries report a disk that is full, or not writable, into one sentence.

    Args:
        what: what is being written.
        output_dir: where checkpoints are; the sentence names the last good one.
    """
    try:
        yield
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise InputError(
            f"{what} cannot be written in '{output_dir}' ({reason}); make room there or choose another output_dir, "
            f"{_way_out(output_dir)}"
        ) from error


def _write_failure(error: Exception) -> str | None:
    """Why something could not be written, if that is what an error is about."""
    if isinstance(error, OSError):
        return error.strerror or reason_of(error)
    if isinstance(error, SafetensorError) or "(os error" in str(error):  # tokenizers raises bare exceptions
        return reason_of(error)
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in TORCH_SIGNS):
        return "torch could not write a file to its end"
    return None


def _way_out(output_dir: str | Path) -> str:
    newest, _ = find_newest(output_dir)
    if newest is None:
        return "and start again: there is no complete checkpoint yet"
    return f"and resume from the last good checkpoint, '{newest}'"
