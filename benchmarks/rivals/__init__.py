"""Other libraries that take tokens back, each in an environment and a process of its own.

The parent's side, standard library only. A child runs one library on one job and answers a line of JSON per round, so
that rounds of several libraries can take turns on one machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]

RIVALS = {
    "backtrack_sampler": ("backtrack_sampler==3.2.1", "transformers==4.57.6", "numpy==2.4.6"),
    "backtracking_llm": ("backtracking-llm==0.3.1", "transformers==4.57.6", "numpy==2.4.6"),
}
"""What pip installs for each, in the versions tried; torch comes at the version in the repository's constraints.

`backtracking-llm` requires transformers 4. `backtrack_sampler` runs with 5 too, but with 4 it is faster or as fast.
"""


@dataclass(frozen=True)
class Job:
    """What a child completes, and with which model."""

    model: str
    """A folder that `save_pretrained` wrote."""
    bias: str
    """A file of `torch.save` with a float [V] tensor, the bias of the output layer."""
    prompts: list[list[int]]
    max_completion_length: int
    eos: int
    backspace: int
    """Deletes the token before it."""
    threads: int

    @property
    def max_actions(self) -> int:
        """The most actions of one completion."""
        return 4 * self.max_completion_length + 16


def environment(name: str, folder: Path) -> Path:
    """The python of the virtual environment `folder/name`, which is made unless it has what `RIVALS` asks for."""
    home = folder.absolute() / name
    python, marker = home / "bin" / "python", home / "installed.txt"
    wanted = [*RIVALS[name], _torch()]
    if marker.is_file() and marker.read_text().split() == wanted:
        return python
    _run(name, [sys.executable, "-m", "venv", "--clear", str(home)])
    _run(name, [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    marker.write_text("\n".join(wanted) + "\n")
    return python


class Rival:
    """A child that runs one rival. Used in a `with` statement, or closed by hand."""

    def __init__(self, name: str, python: Path, job: Job) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix=f"{name}-")
        path = Path(self._folder.name) / "job.json"
        path.write_text(json.dumps(asdict(job)))
        self._errors = (Path(self._folder.name) / "stderr.txt").open("w+")
        # Run as a module with -P: a script's own folder would come first on the path, where the child's file would be
        # found under the library's name.
        self._child = subprocess.Popen(
            [str(python), "-P", "-m", f"{__name__}.{name}", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": str(job.threads)},
        )
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def round(self, count: int, seed: int) -> dict[str, Any]:
        """Complete the next `count` prompts, one after the other.

        Returns:
            `seconds` of generation, `actions` (appended tokens, the final eos among them, and deletions), `deletions`,
            and `completions`.
        """
        try:
            self._child.stdin.write(json.dumps({"count": count, "seed": seed}) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return json.loads(self._read())

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.communicate()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> Rival:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> str:
        line = self._child.stdout.readline()
        if not line:
            raise self._died()
        return line

    def _died(self) -> RuntimeError:
        status = self._child.wait()
        self._errors.seek(0)
        return RuntimeError(f"{self.name} ended with {_reason(self._errors.read()) or f'exit status {status}'}")


def _torch() -> str:
    lines = (BENCHMARKS.parent / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = _reason(done.stderr) or _reason(done.stdout) or done.returncode
        raise RuntimeError(f"No environment for {name}: {reason}")


def _reason(text: str) -> str:
    """The last line of an error, or nothing; where pip marks its errors, warnings that follow them don't count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("ERROR:")]
    return (marked or lines or [""])[-1]
