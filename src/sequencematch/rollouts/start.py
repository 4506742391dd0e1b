"""Rollouts before their first action: prompts, checked, each with noise of its own."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ..errors import InputError
from ..mdp import ActionSpace
from .row import Row, noise_of
from .sampling import SamplingConfig


def start_rows(
    prompts: Sequence[Sequence[int]],
    space: ActionSpace,
    config: SamplingConfig,
    seeds: Sequence[int] | None = None,
    paddings: Sequence[Sequence[int]] | None = None,
) -> list[Row]:
    """One row for each prompt; see `RolloutEngine.rollout` and `Row`.

    Raises InputError for an empty prompt, tokens out of range, and seeds that are not as many as prompts.
    """
    for name, tokens in (("logit_bias", list(config.logit_bias)), ("stop_token_ids", config.stop_token_ids)):
        space.check_tokens(tokens, name)
    if seeds is not None and len(seeds) != len(prompts):
        raise InputError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one each")
    shared = secrets.randbits(64) if config.seed is None else config.seed
    rows = []
    for index, prompt in enumerate(prompts):
        tokens = [int(token) for token in prompt]
        if not tokens:
            raise InputError("a prompt needs at least one token (a beginning-of-text token will do)")
        space.check_tokens(tokens, "prompt")
        noise = noise_of(shared, index) if seeds is None else noise_of(seeds[index])
        rows.append(Row(index, tokens, noise, space, config, () if paddings is None else paddings[index]))
    return rows
