"""The budget that every arm of a study gets: steps, tokens or seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

UNITS = ("steps", "tokens", "seconds")

SCHEDULE = (
    "warmup_steps",
    "bc_warmup_steps",
    "bc_anneal_steps",
    "lr_scheduler_kwargs.num_decay_steps",
    "logging_steps",
)
"""Options that are a part of the run: they shrink and grow with its number of steps."""

PILOT_STEPS = 40
"""Length of the run that tells what a step costs, schedule shrunk to it, so that each phase has its share."""


@dataclass(frozen=True)
class Budget:
    """What a run may spend. Raises InputError for an unknown unit or nothing to spend."""

    unit: str
    """`steps` (of the optimizer), `tokens` (states that training runs through the model, and actions that it samples)
    or `seconds` (of training, rollouts included, evaluation not)."""
    amount: float

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise InputError(f"a budget is in {', '.join(UNITS)}, not '{self.unit}'")
        number = isinstance(self.amount, int | float) and not isinstance(self.amount, bool)
        if not number or not self.amount > 0 or (self.unit == "steps" and self.amount != int(self.amount)):
            raise InputError(f"the budget of {self.unit} must be above 0 (steps: a whole number), not {self.amount!r}")

    @classmethod
    def of(cls, given: Any) -> Budget:
        """From `{steps: 800}`. Raises InputError."""
        if not isinstance(given, Mapping) or len(given) != 1:
            raise InputError(
                f"budget is one of steps, tokens and seconds with its amount, such as steps: 800, not {given!r}"
            )
        ((unit, amount),) = given.items()
        return cls(unit, amount)

    def steps(self, cost_of_a_step: float) -> int:
        """The steps that it pays for, at least one."""
        return max(1, math.floor(self.amount / cost_of_a_step))


def with_steps(options: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A run's options for so many steps. What `max_steps` they had, if any, tells what their schedule was made for:
    each part of it keeps its share."""
    found = {**options, "max_steps": steps}
    scale = steps / options.get("max_steps", steps)
    for name in SCHEDULE:
        outer, _, inner = name.partition(".")
        value = (options.get(outer) or {}).get(inner) if inner else options.get(outer)
        if scale == 1 or not isinstance(value, int):
            continue
        part = max(1, round(value * scale)) if value else 0
        found[outer] = {**found[outer], inner: part} if inner else part
    return found
