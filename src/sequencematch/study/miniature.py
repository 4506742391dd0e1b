"""A study as a miniature: enough to see that everything runs, not to learn anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL = {
    "steps": 4,
    "tokens": 20_000,
    "seconds": 5,
    "max_steps": 4,
    "warmup_steps": 1,
    "num_decay_steps": 1,
    "bc_warmup_steps": 1,
    "bc_anneal_steps": 1,
    "rollout_steps": 2,
    "per_device_train_batch_size": 16,
    "train_size": 256,
    "test_size": 16,
    "logging_steps": 1,
    "transcripts": 2,
}
"""What a miniature sets wherever the study sets it to anything else than nothing."""


def miniature(given: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a study's YAML file with everything small that makes it long, and one seed."""
    found = {key: _shrunk(key, value) for key, value in given.items()}
    if "seeds" in found:
        found["seeds"] = list(found["seeds"])[:1]
    return found


def _shrunk(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {inner: _shrunk(inner, entry) for inner, entry in value.items()}
    if key == "vary":
        return [{**grid, "options": {name: values[:1] for name, values in grid["options"].items()}} for grid in value]
    return SMALL[key] if key in SMALL and value else value
