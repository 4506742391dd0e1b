"""What to draw, and from what: the knobs of generation and the distribution they make of the policy.

Shapes: R rows (states), V actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace
from ..models.legality import mask_illegal

Retry = Literal["resample", "exclude"]


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample completions. The defaults sample the policy itself. Raises InputError for impossible values."""

    temperature: float = 1.0
    """Divides the logits of every legal action, deletions and `<eos>` included; 0 is greedy decoding."""
    top_k: int = 0
    """Keep only the k most probable actions; 0 keeps all."""
    top_p: float = 1.0
    """Keep only the smallest set of most probable actions whose probability reaches this; 1 keeps all."""
    max_completion_length: int = 256
    """The most surviving tokens, `<eos>` aside. At this length the policy is still asked, so that it may end or delete;
    if it would append instead, the rollout is cut there without that action."""
    max_actions: int | None = None
    """The most actions, after which the rollout is cut; `4 * max_completion_length + 16` if not given."""
    max_deletions: int | None = None
    """The most deletion actions; once they are spent deletions have probability zero. No limit if not given."""
    allow_backspace: bool = True
    """False gives every deletion action probability zero."""
    backspace_logit_bias: float = 0.0
    """Added to the logits of all deletion actions, before the temperature; positive makes the model delete more."""
    retry: Retry = "resample"
    """After a deletion, `resample` draws from the same distribution again; `exclude` bars the first deleted token at
    the string where the deletion landed, for the rest of the rollout: greedy decoding then never repeats itself."""
    seed: int | None = 0
    """Seeds the sampling noise, together with the prompt's index: give each call (and rank) a seed of its own.
    None takes a fresh one from the operating system each time."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature must be a number of at least 0 (0 is greedy), not {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1 (1 keeps all actions), not {self.top_p!r}")
        if not math.isfinite(self.backspace_logit_bias):
            raise InputError("backspace_logit_bias must be finite; use allow_backspace=False to forbid deletions")
        if self.retry not in get_args(Retry):
            raise InputError(f"retry must be one of {get_args(Retry)}, not {self.retry!r}")
        for name, least in (("top_k", 0), ("max_completion_length", 1)):
            _check_whole(name, getattr(self, name), least)
        for name, least in (("max_actions", 1), ("max_deletions", 0), ("seed", 0)):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), least)

    @property
    def action_limit(self) -> int:
        """The number of actions after which a rollout is cut, whatever the model does."""
        return 4 * self.max_completion_length + 16 if self.max_actions is None else self.max_actions


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def next_action_logits(
    logits: Tensor,
    completion_length: Tensor,
    space: ActionSpace,
    config: SamplingConfig,
    *,
    deletions_taken: Tensor | None = None,
    barred: Tensor | None = None,
) -> Tensor:
    """Log-probabilities that the next actions are drawn from.

    In this order: illegal actions out; `backspace_logit_bias` on deletions; deletions out where `allow_backspace` or
    `max_deletions` says so; barred actions out; temperature on all that is left; top-k; top-p; normalisation.

    Args:
        logits: float [R, V], the language model's raw logits, or log-probabilities of the policy (the same up to
            a constant per row). Not changed.
        completion_length: int [R], tokens of completion in each state.
        space: the action space; V must be its `vocab_size`.
        config: the sampling knobs.
        deletions_taken: int [R], deletion actions so far; only read where `max_deletions` is set (zeros if not given).
        barred: bool [R, V], further actions that must not be taken.

    Returns:
        float [R, V]; rows of `-inf` where no action is left. Greedy rows are one-hot: 0 at the argmax.
    """
    scores = mask_illegal(logits.float(), completion_length, space)
    tokens = [deletion.token_id for deletion in space.deletions]
    if tokens:
        column = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
        column[tokens] = True
        if config.backspace_logit_bias:
            scores = scores + config.backspace_logit_bias * column
        if not config.allow_backspace:
            scores = scores.masked_fill(column, -torch.inf)
        elif config.max_deletions is not None:
            taken = torch.zeros_like(completion_length) if deletions_taken is None else deletions_taken
            scores = scores.masked_fill((taken >= config.max_deletions)[:, None] & column, -torch.inf)
    if barred is not None:
        scores = scores.masked_fill(barred, -torch.inf)
    return _shape_distribution(scores, config)


def _shape_distribution(scores: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, top-k, top-p and normalisation of scores [R, V]; a row with nothing left stays `-inf`."""
    possible = scores > -torch.inf
    best = scores.max(-1, keepdim=True)
    if config.temperature == 0:
        first = torch.arange(scores.shape[-1], device=scores.device) == best.indices
        return torch.zeros_like(scores).masked_fill(~(first & possible), -torch.inf)
    # Taking the maximum off first keeps a tiny temperature from overflowing; it cancels in the softmax.
    scores = ((scores - best.values) / config.temperature).masked_fill(~possible, -torch.inf)
    if 0 < config.top_k < scores.shape[-1]:
        kth = scores.topk(config.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if config.top_p < 1:
        ranked, order = scores.softmax(-1).sort(descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= config.top_p)
        scores = scores.masked_fill(outside, -torch.inf)
    return scores.log_softmax(-1).masked_fill(scores == -torch.inf, -torch.inf)


def draw_actions(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one action a row by inverting its cumulative distribution, in float64.

    Args:
        log_probs: float [R, V], as `next_action_logits` gives them, each row with an action left.
        uniforms: float64 [R] in [0, 1): the row's own noise.

    Returns:
        int64 [R]; never an action of probability zero.
    """
    device = log_probs.device
    wide = log_probs.cpu() if device.type == "mps" else log_probs  # MPS has no float64
    cumulative = wide.double().exp().cumsum(-1)
    total = cumulative[:, -1]
    # Rounding must not carry the target to the total, past the last action of positive probability.
    target = torch.minimum(uniforms.to(total.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1).to(device)
