"""What a benchmark leaves behind: tables, one JSON file, and one line of JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Spread
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
console = Console(width=120, highlight=False)


def parser(description: str | None, sizes: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    found.add_argument("--device", choices=["cpu", "cuda"], default=default, help="where to run")
    found.add_argument("--size", choices=list(sizes), help="model and batch; the default goes with the device")
    found.add_argument("--quick", action="store_true", help="fewer repetitions: under five minutes on two cores")
    found.add_argument("--threads", type=int, help="CPU threads of torch; its own choice if not given")
    found.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    return found


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and apply the number of threads."""
    args = options.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; the first column is text, the others numbers."""
    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*(f"{cell:,.3g}" if isinstance(cell, float) and cell < 100 else _plain(cell) for cell in row))
    console.print(shown)


def _plain(cell: Any) -> str:
    return f"{cell:,.0f}" if isinstance(cell, int | float) else str(cell)


def finish(
    name: str, args: argparse.Namespace, ratios: dict[str, Spread], size: Any, samples: Any, **details: Any
) -> None:
    """Print the ratios, store the record as `<name>-<device>.json`, and print all of it but the samples as one line.

    A quick run, or one of another size than the device's own, has that in the file's name.
    """
    table(
        "Ratios",
        ("ratio", "median", "quartiles"),
        [(key, r.median, f"{r.low:.3g} to {r.high:.3g}") for key, r in ratios.items()],
    )
    record = {
        "name": name,
        "ratios": {key: ratio.rounded()[0] for key, ratio in ratios.items()},
        "quartiles": {key: ratio.rounded()[1:] for key, ratio in ratios.items()},
        "options": {key: str(value) for key, value in vars(args).items() if key != "results"},
        "environment": environment(args.device),
        "size": vars(size),
        **details,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    variant = "".join(f"_{word}" for word in (args.size, "quick" if args.quick else None) if word)
    path = args.results / f"{name}{variant}-{args.device}.json"
    path.write_text(json.dumps(rounded(record | {"samples": samples}), indent=1) + "\n")
    print(json.dumps(rounded(record)), flush=True)


def rounded(found: Any) -> Any:
    """The same with all numbers at five significant digits."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value) for value in found]
    return float(f"{found:.5g}") if isinstance(found, float) else found


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware."""
    packages = ("torch", "transformers", "trl", "accelerate", "numpy", "sequencematch")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "src", "benchmarks/*.py")),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", *command), cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
