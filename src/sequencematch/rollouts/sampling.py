"""How to sample: the knobs of generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import InputError

Retry = Literal["resample", "exclude"]


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample completions. The defaults sample the policy itself. Raises InputError for impossible values."""

    temperature: float = 1.0
    """Divides the logits of every legal action, deletions and `<eos>` included; 0 is greedy decoding."""
    top_k: int = 0
    """Keep only the k most probable actions (all that tie with the last of them too); 0 keeps all."""
    top_p: float = 1.0
    """Keep only the most probable actions whose probability reaches this (all that tie with the last); 1 keeps all."""
    min_p: float = 0.0
    """Keep only actions at least this times as probable as the most probable one; 0 keeps all."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token -> what is added to its logit, before the temperature; `-inf` forbids it."""
    backspace_logit_bias: float = 0.0
    """Added to the logits of all deletion actions, before the temperature; positive makes the model delete more."""
    allow_backspace: bool = True
    """False gives every deletion action probability zero."""
    max_completion_length: int = 256
    """The most surviving tokens, `<eos>` aside. At this length the policy is still asked, so that it may end or delete;
    if it would append instead, the rollout is cut there without that action."""
    max_actions: int | None = None
    """The most actions, after which the rollout is cut; `4 * max_completion_length + 16` if not given."""
    max_deletions: int | None = None
    """The most deletion actions; once they are spent deletions have probability zero. No limit if not given."""
    retry: Retry = "resample"
    """After a deletion, `resample` draws from the same distribution again; `exclude` bars the first deleted token at
    the string where the deletion landed, for the rest of the rollout: greedy decoding then never repeats itself."""
    stop_strings: tuple[str, ...] = ()
    """The rollout is cut once the surviving completion's text holds one of these (needs the engine's tokenizer)."""
    stop_token_ids: tuple[int, ...] = ()
    """The rollout is cut after a token that is one of these."""
    seed: int | None = 0
    """Seeds the sampling noise, together with the prompt's index: give each call (and rank) a seed of its own.
    None takes a fresh one from the operating system each time."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature must be a number of at least 0 (0 is greedy), not {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1 (1 keeps all actions), not {self.top_p!r}")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be between 0 (which keeps all actions) and 1, not {self.min_p!r}")
        if not math.isfinite(self.backspace_logit_bias):
            raise InputError("backspace_logit_bias must be finite; use allow_backspace=False to forbid deletions")
        if self.retry not in get_args(Retry):
            raise InputError(f"retry must be one of {get_args(Retry)}, not {self.retry!r}")
        if isinstance(self.stop_strings, str) or not all(self.stop_strings):
            raise InputError(f"stop_strings must be a list of strings that are not empty, not {self.stop_strings!r}")
        for token, bias in self.logit_bias.items():
            _check_whole("a token id of logit_bias", token, 0)
            if not bias < math.inf:
                raise InputError(f"logit_bias must be finite or -inf, not {bias!r} (token {token})")
        for token in self.stop_token_ids:
            _check_whole("a token id of stop_token_ids", token, 0)
        for name, least in (("top_k", 0), ("max_completion_length", 1)):
            _check_whole(name, getattr(self, name), least)
        for name, least in (("max_actions", 1), ("max_deletions", 0), ("seed", 0)):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), least)

    @property
    def action_limit(self) -> int:
        """The number of actions after which a rollout is cut, whatever the model does."""
        return 4 * self.max_completion_length + 16 if self.max_actions is None else self.max_actions

    @property
    def greedy(self) -> bool:
        """Whether the best action is taken, not a sampled one."""
        return self.temperature == 0

    @property
    def filters(self) -> bool:
        """Whether an action's probability depends on which others are ruled out by more than normalisation."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
