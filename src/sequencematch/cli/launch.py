"""`sequencematch train` in several processes, which accelerate starts."""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch

from ..errors import InputError, reason_of
from ..training.run import Run

CONFIGS = Path(__file__).parent / "accelerate_configs"
ERROR = b"sequencematch: error: "
GRACE_SECONDS = 40
"""How long processes have to end when told to; torchrun gives its own 30 seconds."""


class ErrorFilter:
    """Passes the processes' messages on, up to the first one that starts with `sequencematch: error: `.

    Every process may report the same bad input, and the launcher then reports that processes failed: one sentence is
    enough.
    """

    def __init__(self) -> None:
        self._held = b""
        self._shown = b"\n"
        self.sentence: str | None = None
        """What follows `sequencematch: error: `, once it has come."""

    def feed(self, data: bytes) -> bytes:
        """Take some bytes; returns what to show now. Only what may be the beginning of an error is held back."""
        if self.sentence is not None:
            return b""
        self._held += data
        start = self._held.find(ERROR)
        if start < 0:
            kept = next(n for n in range(len(ERROR), -1, -1) if self._held.endswith(ERROR[:n]))
            show, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        else:
            show, self._held = self._held[:start], self._held[start:]
            line, end, _ = self._held.partition(b"\n")
            if end:
                self.sentence = line[len(ERROR) :].decode(errors="replace").strip()
        self._shown = (self._shown + show)[-1:]
        # A progress bar that the error cut short stays on a line of its own.
        return show + b"\n" if self.sentence is not None and self._shown not in (b"\n", b"\r") else show

    def finish(self) -> bytes:
        """What was held back and was no error after all."""
        return self._held if self.sentence is None else b""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def launch(argv: Sequence[str]) -> int | None:
    """Run `sequencematch train` in several processes, if its flags ask for it.

        --num_processes N               how many; as many as the accelerate config says if not given
        --accelerate_config NAME        fsdp2, multi_cpu, multi_gpu, zero3, or the path of a file of your own

    Args:
        argv: the flags of `train`; all others are those of one process.

    Returns:
        the exit code, or None if neither flag is given: then this process is to train.

    Raises InputError for bad input, as any of the processes reports it.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes")
    parser.add_argument("--accelerate_config")
    flags, rest = parser.parse_known_args(list(argv))
    if flags.num_processes is None and flags.accelerate_config is None:
        return None
    if "LOCAL_RANK" in os.environ:
        raise InputError("this is one of several processes already; give num_processes to accelerate launch only")
    environment = dict(os.environ)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if flags.num_processes is not None:
        command += ["--num_processes", str(_count(flags.num_processes))]
    run = Run.parse(rest)  # a wrong option is found before anything starts
    on_gpus = torch.cuda.is_available() and not run.training.use_cpu
    config = find_config(flags.accelerate_config or ("multi_gpu" if on_gpus else "multi_cpu"))
    if _uses_cpu(config):
        environment["ACCELERATE_USE_CPU"] = "true"  # without it, each process would train alone
    command += ["--config_file", str(config), "--module", "sequencematch.cli.main", "train", *rest]
    return _run(command, environment)


def find_config(name: str) -> Path:
    """An accelerate config's file, by its path or the name of one of ours. Raises InputError if there is none."""
    path = Path(name) if Path(name).is_file() else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.yaml")))
        raise InputError(f"there is no accelerate config '{name}'; give the path of a file, or one of {names}")
    return path


def _uses_cpu(config: Path) -> bool:
    """Whether an accelerate config is one for CPUs. Raises InputError if accelerate cannot read it."""
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        return bool(load_config_from_file(str(config)).use_cpu)
    except Exception as error:
        raise InputError(f"the accelerate config '{config}' cannot be read: {reason_of(error)}") from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"num_processes must be a positive whole number, not {text!r}")
    return int(text)


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end, with its stderr filtered; what ends this process ends the command's processes."""
    messages = ErrorFilter()
    with _exit_on_termination():
        # A session of its own: an interrupt from the terminal reaches it once, from here.
        child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, bufsize=0, start_new_session=True)
        try:
            for data in _read(child):
                _show(messages.feed(data))
            _show(messages.finish())
            code = child.wait()
        finally:
            _end(child)
    if messages.sentence is not None:
        raise InputError(messages.sentence)
    return code if code >= 0 else 128 - code


def _read(child: subprocess.Popen) -> Iterator[bytes]:
    """What a process and its children write to stderr, as it comes, until the process has ended."""
    assert child.stderr is not None
    while True:
        ready, _, _ = select.select([child.stderr], [], [], 1.0)
        if ready:
            data = child.stderr.read(65536)
            if not data:
                return
            yield data
        elif child.poll() is not None:
            return  # something that it left behind holds stderr open


def _show(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def _end(child: subprocess.Popen) -> None:
    """Have a process that is still running end its children and itself."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
    assert child.stderr is not None
    child.stderr.close()


@contextmanager
def _exit_on_termination() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit, so that cleaning up comes first."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
