"""SequenceMatch: train language models by occupancy matching, and let them take tokens back (arXiv 2306.05426).

The public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ActionSpace": "mdp",
    "Deletion": "mdp",
    "Trajectory": "mdp",
    "replay": "mdp",
    "Layout": "tree",
    "TreeBatch": "tree",
    "collate_trajectories": "tree",
    "add_adapters": "models",
    "add_backspace_token": "models",
    "action_space": "models",
    "evaluate_states": "models",
    "layout_of": "models",
    "load_model": "models",
    "load_tokenizer": "models",
    "prepare_model": "models",
    "get_divergence": "objectives",
    "bc_loss": "objectives",
    "sequencematch_loss": "objectives",
    "iql_offline_loss": "objectives",
    "Steps": "objectives",
    "Append": "rollouts",
    "Delete": "rollouts",
    "End": "rollouts",
    "HFRolloutEngine": "rollouts",
    "ReplayBuffer": "rollouts",
    "RetractingTextStreamer": "rollouts",
    "Rollout": "rollouts",
    "RolloutEngine": "rollouts",
    "SamplingConfig": "rollouts",
    "TextStream": "rollouts",
    "backspace_generate": "rollouts",
    "SequenceMatchConfig": "training",
    "SequenceMatchTrainer": "training",
    "get_task": "tasks",
    "InputError": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
