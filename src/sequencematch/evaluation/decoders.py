"""Decoding without deletions by other means than sampling: beam search and contrastive search.

Both forbid deletions, which leaves the policy renormalised over everything else. Of a `SamplingConfig` they read
`max_completion_length` and `max_actions`; what is about sampling and deleting has no effect on them.
Shapes: B prompts, L tokens of the longest, S tokens so far, k candidates, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory
from ..models import LogitTransform, check_fits, evaluate_states, evaluation_mode, head_logits, layout_of
from ..models.prepare import core_of
from ..models.tiled_head import slices, wide_dtype
from ..rollouts import FinishReason, Rollout
from ..tree import collate_trajectories

if TYPE_CHECKING:
    from ..rollouts import HFRolloutEngine, SamplingConfig


@dataclass(frozen=True)
class Decoded:
    """What a decoder made of some prompts, and what it cost."""

    rollouts: list[Rollout]
    """One for each prompt, without deletions; `log_probs` are the policy's own, as for any other rollout."""
    actions: np.ndarray
    """int64 [prompts]: actions that were weighed on the way to each, those that were not taken included."""


def beam_search(
    engine: HFRolloutEngine,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
) -> Decoded:
    """Keep the likeliest `num_beams` strings at every length, until as many have ended; return the best of these.

    It is `model.generate(num_beams=..., early_stopping=True)` of transformers. The best has the greatest sum of
    log-probabilities divided by its number of actions to the power `length_penalty`; one that the length limit cuts
    competes with the others as it is. A search costs `num_beams` actions for each of its own steps, whatever else is
    searched with it. `engine.batch_size` strings are under way at a time.

    Raises InputError for a bad prompt, options that it does not have, or less than one beam.
    """
    if num_beams < 1:
        raise InputError(f"beam search needs at least one beam, not {num_beams}")
    core, limit, found = _start(engine, prompts, config)
    options = GenerationConfig(
        num_beams=num_beams,
        num_return_sequences=num_beams,
        early_stopping=num_beams > 1,
        length_penalty=length_penalty,
        do_sample=False,
        max_new_tokens=limit,
        suppress_tokens=_forbidden(core, engine.space) or None,
        renormalize_logits=True,
        eos_token_id=engine.space.eos_token_id,
        pad_token_id=engine.space.eos_token_id,
    )
    walks, steps = [], []
    with evaluation_mode(core), _own_generation_config(core):
        for part in slices(len(found), max(engine.batch_size // num_beams, 1)):
            ids, mask = _padded(found[part], engine.space.eos_token_id, core.device)
            strings = core.generate(ids, attention_mask=mask, generation_config=options)[:, ids.shape[1] :]
            ended = [_until(string, engine.space.eos_token_id) for string in strings.tolist()]
            searches = [ended[start : start + num_beams] for start in range(0, len(ended), num_beams)]
            walks += [search[0] for search in searches]
            # The search is over once all beams have ended: with the longest of them.
            steps += [max(map(len, search)) for search in searches]
    return _decoded(engine, found, walks, num_beams * np.array(steps, dtype=np.int64), config)


@torch.no_grad()
def contrastive_search(
    engine: HFRolloutEngine,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    top_k: int = 4,
    penalty_alpha: float = 0.6,
) -> Decoded:
    """Take, of the `top_k` likeliest tokens, the one that is likely and unlike all of the context.

        x_t = argmax over candidates v of (1 - penalty_alpha) pi(v|x_<t) - penalty_alpha max_j cos(h_v, h_{x_j})

    with h the last hidden state of a token, that of v after x_<t, and j over prompt and completion (Su et al., NeurIPS
    2022, arXiv 2202.06417). With one candidate, or no penalty, it is greedy decoding. Every step costs `top_k` actions,
    each of which is run through the model. transformers has it as code to be downloaded only.

    Raises InputError for a bad prompt, options that it does not have, less than one candidate, or a penalty outside
    [0, 1].
    """
    if top_k < 1:
        raise InputError(f"contrastive search needs at least one candidate (top_k), not {top_k}")
    if not 0 <= penalty_alpha <= 1:
        raise InputError(f"penalty_alpha must be between 0 and 1, not {penalty_alpha}")
    core, limit, found = _start(engine, prompts, config)
    top_k = min(top_k, engine.space.vocab_size)
    walks: list[list[int]] = []
    with evaluation_mode(core):
        for part in slices(len(found), max(engine.batch_size // top_k, 1)):
            walks += _contrast(core, engine.space, found[part], limit, top_k, penalty_alpha)
    return _decoded(engine, found, walks, top_k * np.array([len(walk) for walk in walks], dtype=np.int64), config)


def _contrast(
    core: Any, space: ActionSpace, prompts: list[list[int]], limit: int, top_k: int, alpha: float
) -> list[list[int]]:
    """The actions of contrastive search from each prompt, at most `limit`."""
    walks: list[list[int]] = [[] for _ in prompts]
    forbidden = _forbidden(core, space)
    live = torch.arange(len(prompts), device=core.device)
    ids, mask = _padded(prompts, space.eos_token_id, core.device)
    cache = DynamicCache(config=core.config)
    hidden = _run(core, ids, mask, cache)
    last, context = hidden[:, -1], _direction(hidden)  # float [B, D] and [B, S, D]
    for _ in range(limit):
        logits = head_logits(core.get_output_embeddings(), last, LogitTransform.of(core.config))
        logits[:, forbidden] = -torch.inf
        probability, candidate = logits.softmax(-1).topk(top_k)  # [B, k]
        cache.batch_repeat_interleave(top_k)
        after = F.pad(mask, (0, 1), value=1)
        tried = _run(core, candidate.view(-1, 1), after.repeat_interleave(top_k, 0), cache).view(len(live), top_k, -1)
        new = _direction(tried)
        alike = (new @ context.transpose(1, 2)).masked_fill(mask[:, None] == 0, -torch.inf).amax(-1)
        best = ((1 - alpha) * probability - alpha * alike).masked_fill(probability == 0, -torch.inf).argmax(-1)
        row = torch.arange(len(live), device=core.device)
        token = candidate[row, best]
        for place, action in zip(live.tolist(), token.tolist(), strict=True):
            walks[place].append(action)
        stays = (token != space.eos_token_id).nonzero()[:, 0]
        if not len(stays):
            break
        row, best = row[stays], best[stays]
        live, mask, last = live[stays], after[stays], tried[row, best]
        context = torch.cat([context[stays], new[row, best][:, None]], 1)
        cache.batch_select_indices(row * top_k + best)
    return walks


def _direction(hidden: Tensor) -> Tensor:
    return F.normalize(hidden.to(wide_dtype(hidden.dtype)), dim=-1)


def _run(core: Any, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Feed int64 [R, T] tokens to strings that now are as long as mask [R, S]: their hidden states, float [R, T, D]."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = core.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return output.last_hidden_state


def _forbidden(core: Any, space: ActionSpace) -> list[int]:
    """Deletions, and rows of the output embedding that are no actions."""
    return [*space.by_token, *range(space.vocab_size, len(core.get_output_embeddings().weight))]


def _start(
    engine: HFRolloutEngine, prompts: Sequence[Sequence[int]], config: SamplingConfig
) -> tuple[Any, int, list[list[int]]]:
    """The stock model, the most actions, and the checked prompts. Raises InputError."""
    for name in ("logit_bias", "stop_strings", "stop_token_ids"):
        if getattr(config, name):
            raise InputError(f"beam and contrastive search have no {name}; leave it out, or sample")
    found = [row.prompt for row in engine.start(prompts, config)]
    core = core_of(engine.model)
    # With <eos>, which is run through the model like any other token.
    check_fits(core, max(map(len, found), default=0), config.max_completion_length + 1)
    return core, min(config.max_completion_length + 1, config.action_limit), found


def _padded(prompts: list[list[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [B, L] twice: token ids with the padding on the left, and 1 where there is none."""
    longest = max(map(len, prompts))
    ids = [[padding] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until(actions: list[int], end: int) -> list[int]:
    """The actions up to the first `end`, and it."""
    return actions[: actions.index(end) + 1] if end in actions else actions


@contextmanager
def _own_generation_config(core: Any) -> Iterator[None]:
    """Inside, `generate` fills in transformers' defaults, and not what the model's own generation config says."""
    before = core.generation_config
    core.generation_config = GenerationConfig()
    try:
        yield
    finally:
        core.generation_config = before


@torch.no_grad()
def _decoded(
    engine: HFRolloutEngine,
    prompts: list[list[int]],
    walks: list[list[int]],
    actions: np.ndarray,
    config: SamplingConfig,
) -> Decoded:
    """Walks as rollouts, with the policy's log-probabilities."""
    core = core_of(engine.model)
    rollouts: list[Rollout] = []
    with evaluation_mode(core):
        for part in slices(len(prompts), engine.batch_size):
            taken = [
                _trajectory(prompt, walk, engine.space.eos_token_id, config.max_completion_length)
                for prompt, walk in zip(prompts[part], walks[part], strict=True)
            ]
            batch = collate_trajectories(taken, engine.space, layout_of(core)).to(core.device)
            steps = evaluate_states(core, batch, engine.space)
            log_probs = (steps.q - steps.v).cpu().double().numpy()
            ends = np.cumsum([len(trajectory) for trajectory in taken])[:-1]
            rollouts += map(_rollout, taken, walks[part], np.split(log_probs, ends))
    return Decoded(rollouts, actions)


def _trajectory(prompt: list[int], walk: list[int], end: int, longest: int) -> Trajectory:
    """A walk, but for an action that would append beyond the longest completion."""
    ended = walk[-1] == end
    actions = np.array(walk if ended else walk[:longest])
    return Trajectory(np.array(prompt), actions, terminated=ended, source="policy", policy_version=0)


def _rollout(trajectory: Trajectory, walk: list[int], log_probs: np.ndarray) -> Rollout:
    log_probs.setflags(write=False)
    tokens = tuple(trajectory.actions.tolist())
    if trajectory.terminated:
        return Rollout(trajectory, log_probs, tokens[:-1], "eos")
    cut: FinishReason = "max_completion_length" if len(walk) > len(tokens) else "max_actions"
    return Rollout(trajectory, log_probs, tokens, cut)
