"""Ways of decoding by name, and as data: what `sequencematch evaluate` and studies compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..rollouts import SamplingConfig, uninterrupted
from .decoders import Decoded, beam_search, contrastive_search
from .selection import choose_likeliest, choose_majority, draw_within

if TYPE_CHECKING:
    from ..rollouts import HFRolloutEngine, Rollout

MODES: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.0},
    "sampled_no_deletion": {"temperature": 1.0, "allow_backspace": False},
    "greedy": {"temperature": 0.0},
    "greedy_no_deletion": {"temperature": 0.0, "allow_backspace": False},
    "greedy_exclude": {"temperature": 0.0, "retry": "exclude"},
}
"""Ways of decoding that are compared when no others are named."""

METHODS: dict[str, tuple[str, ...]] = {
    "sample": (),
    "beam": ("num_beams", "length_penalty"),
    "contrastive": ("top_k", "penalty_alpha"),
    "best_of": ("actions", "choose"),
}
"""Method -> the options that it has beside those of `SamplingConfig`; see `beam_search` and `contrastive_search`. Best
of n draws completions until `actions` are spent on a prompt, and takes the `likeliest` or that of the `majority`."""

SEARCHES: dict[str, Callable[..., Decoded]] = {"beam": beam_search, "contrastive": contrastive_search}
CHOICES = {"likeliest": choose_likeliest, "majority": choose_majority}


@dataclass(frozen=True)
class Completions:
    """What one way of decoding made of some prompts."""

    rollouts: list[Rollout]
    """One for each prompt."""
    actions: np.ndarray
    """int [prompts]: actions spent on each, those of completions that were not chosen among them."""
    seconds: float
    """Wall time of all of them."""


@dataclass(frozen=True)
class Decoding:
    """One way of decoding."""

    method: str
    """One of METHODS."""
    sampling: Mapping[str, Any]
    """Changes to a `SamplingConfig`."""
    options: Mapping[str, Any]
    """The method's own options."""

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Decoding:
        """From a mapping with `method` (default: sample), its options and those of `SamplingConfig`.

        Raises InputError for what is unknown or impossible.
        """
        given = dict(given or {})
        method = given.pop("method", "sample")
        if method not in METHODS:
            raise InputError(f"there is no decoding method '{method}'; choose from {', '.join(METHODS)}")
        sampling = {field.name for field in fields(SamplingConfig)}
        for name in given:
            if name not in sampling and name not in METHODS[method]:
                raise InputError(f"the decoding method '{method}' has no option '{name}'")
        own = {name: value for name, value in given.items() if name in METHODS[method]}
        found = cls(method, {name: value for name, value in given.items() if name not in own}, own)
        replace(SamplingConfig(), **found.sampling)
        if method == "best_of":
            if not isinstance(own.get("actions"), int):
                raise InputError("best_of needs 'actions', the number that it may spend on a prompt")
            if own.get("choose", "likeliest") not in CHOICES:
                raise InputError(f"best_of chooses by {' or '.join(CHOICES)}, not '{own['choose']}'")
        return found

    def check_engine(self, engine: str) -> None:
        """Raise InputError if the engine of that name cannot decode so: only this library's own searches."""
        if self.method in SEARCHES and engine != "hf":
            raise InputError(f"vLLM has no search for the decoding method '{self.method}'; use the engine hf for it")

    def decode(self, engine: HFRolloutEngine, prompts: Sequence[Sequence[int]], config: SamplingConfig) -> Completions:
        """Complete every prompt, as `config` says where this decoding does not. Raises InputError."""
        config = replace(config, **self.sampling)
        start = time.perf_counter()
        rollouts, actions = self._decode(engine, prompts, config)
        return Completions(rollouts, actions, time.perf_counter() - start)

    def _decode(
        self, engine: HFRolloutEngine, prompts: Sequence[Sequence[int]], config: SamplingConfig
    ) -> tuple[list[Rollout], np.ndarray]:
        if self.method in SEARCHES:
            found = SEARCHES[self.method](engine, prompts, config, **self.options)
            return found.rollouts, found.actions
        if self.method == "best_of":
            drawn = draw_within(engine, prompts, config, self.options["actions"])
            choose = CHOICES[self.options.get("choose", "likeliest")]
            return [choose(found) for found in drawn], np.array([_actions(found) for found in drawn])
        rollouts = uninterrupted(engine.rollout(prompts, config))
        return rollouts, np.array([len(rollout.trajectory) for rollout in rollouts])


def _actions(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.trajectory) for rollout in rollouts)
