"""What a run ran with: versions of the libraries, and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..versions import versions

Environment = Mapping[str, Mapping[str, Any]]
"""`versions` and `hardware`, each name -> value."""


def environment() -> Environment:
    """That of this process."""
    hardware = {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        hardware["accelerator"] = torch.cuda.get_device_name()
    return {"versions": {"python": platform.python_version(), **versions()}, "hardware": hardware}


def joined(environments: Iterable[Environment]) -> dict[str, dict[str, Any]]:
    """Those of several runs as one: where they differ, a value names all that there were."""
    found: dict[str, dict[str, dict[Any, None]]] = {"versions": {}, "hardware": {}}
    for each in environments:
        for kind, values in each.items():
            for name, value in values.items():
                found[kind].setdefault(name, {})[value] = None
    return {
        kind: {
            name: next(iter(values)) if len(values) == 1 else " and ".join(map(str, values))
            for name, values in named.items()
        }
        for kind, named in found.items()
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
