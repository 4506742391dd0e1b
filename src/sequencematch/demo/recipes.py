"""What the demo runs, from the YAML files in `configs/`: flat options of `sequencematch train`, shared and by arm."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

ARMS = ("mle", "bc", "sequencematch", "sequencematch_lecam")
"""The arms of every task, in the order in which they are shown."""

TASKS = ("star", "arithmetic")
"""The demo's tasks, in the order in which they are shown."""

QUICK = {
    "max_steps": 4,
    "bc_warmup_steps": 1,
    "bc_anneal_steps": 1,
    "rollout_steps": 2,
    "train_size": 256,
    "test_size": 16,
    "logging_steps": 1,
}
"""What `--quick` changes, where a recipe sets it: enough to see that everything runs, not to learn anything."""


@dataclass(frozen=True)
class Recipe:
    """One task of the demo."""

    name: str
    """`star` or `arithmetic`."""
    title: str
    """What the report calls it."""
    description: str
    """What the report says about it."""
    shared: dict[str, Any]
    """Options of every training run."""
    pretrain: dict[str, Any] | None
    """Further options of the run that makes the checkpoint from which all arms start; None to start from scratch."""
    arms: dict[str, dict[str, Any]]
    """Further options of each arm."""

    def options(self, run: str, folder: Path) -> dict[str, Any]:
        """All options of one run: an arm's name, or `pretrain`."""
        own = self.pretrain if run == "pretrain" else self.arms[run]
        start = {}
        if self.pretrain is not None and run != "pretrain":
            start = {"model_name_or_path": str(folder / self.name / "pretrain"), "from_scratch": None}
        return {**self.shared, **start, **(own or {}), "output_dir": str(folder / self.name / run)}


def load_recipes(quick: bool = False) -> list[Recipe]:
    """The demo's recipes; `quick` makes each of them a miniature."""
    folder = resources.files(__package__) / "configs"
    recipes = [Recipe(name=task, **yaml.safe_load((folder / f"{task}.yaml").read_text())) for task in TASKS]
    return [_miniature(recipe) for recipe in recipes] if quick else recipes


def _miniature(recipe: Recipe) -> Recipe:
    def shrink(options: dict[str, Any]) -> dict[str, Any]:
        return {key: QUICK.get(key, value) if value else value for key, value in options.items()}

    return Recipe(
        **{
            **recipe.__dict__,
            "shared": shrink(recipe.shared),
            "pretrain": recipe.pretrain and shrink(recipe.pretrain),
            "arms": {name: shrink(options) for name, options in recipe.arms.items()},
        }
    )
