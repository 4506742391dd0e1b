"""`sequencematch env`: the versions and hardware that a bug report needs.

Versions are read from the packages' metadata: only torch is imported, and a package that is missing or broken is said
to be so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import indent
from typing import Any

from .. import __version__
from ..errors import InputError, reason_of

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "huggingface_hub",
    "numpy",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "vllm",
    "wandb",
    "trackio",
    "tensorboard",
)
GIB = 2**30


def run(argv: Sequence[str]) -> None:
    """Print the environment, as a list to paste into an issue or as JSON."""
    parser = argparse.ArgumentParser(prog="sequencematch env", description=__doc__, exit_on_error=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; see {parser.prog} --help") from None
    if unknown:
        raise InputError(f"unrecognized arguments: {' '.join(unknown)}; see {parser.prog} --help")
    found = environment()
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(_lines(found)))


def environment() -> dict[str, Any]:
    """Name -> what was found: text, a number, or a list of texts; None for what is not there."""
    return {
        "sequencematch": __version__,
        "commit": _commit(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **_devices(),
        "cpus": _cpus(),
        "memory": _memory(),
        **_hugging_face(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, if it does."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        told = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return told.stdout.strip() or None


def _devices() -> dict[str, Any]:
    """What torch says of accelerators and threads."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"accelerators": f"torch cannot be imported: {reason_of(error)}"}
    found: dict[str, Any] = {"cuda": torch.version.cuda, "accelerators": [], "threads": torch.get_num_threads()}
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
        name_of = getattr(torch.get_device_module(kind), "get_device_name", lambda index: kind)
        found["accelerators"] = [name_of(index) for index in range(torch.accelerator.device_count())]
    return found


def _cpus() -> int | None:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> str | None:
    try:
        import psutil
    except ImportError:
        return None
    memory = psutil.virtual_memory()
    return f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"


def _hugging_face() -> dict[str, Any]:
    """The cache of models and data sets, and accelerate's default config."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    home = home.expanduser().absolute()
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIB
    return {"hf_home": f"{home}, {free:.1f} GiB free", "accelerate_config": _accelerate_config(home / "accelerate")}


def _accelerate_config(folder: Path) -> str | None:
    """The text of accelerate's default config; YAML where there is JSON as well, as accelerate chooses."""
    path = next((path for path in sorted(folder.glob("default_config.*"), reverse=True) if path.is_file()), None)
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {reason_of(error)}"


def _lines(found: dict[str, Any]) -> list[str]:
    lines = ["Paste this into the issue:", ""]
    for name, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        if shown in (None, ""):
            shown = "not installed" if name in PACKAGES else "none"
        shown = str(shown)
        # Several lines stand below their name.
        lines.append(f"- {name}:" + (f"\n{indent(shown, '    ')}" if "\n" in shown else f" {shown}"))
    return lines
