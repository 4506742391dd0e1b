"""From the policy's logits to the distribution that actions are drawn from, and the drawing.

Shapes: R rows (states), V actions, m draws of each row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mdp import ActionSpace
from ..models.legality import mask_illegal_in_tile_
from .sampling import SamplingConfig

BLOCK = 128
"""Actions whose probabilities are summed before the block that a draw falls into is looked at more closely."""
NUCLEUS = 256
"""Actions that are ranked at first in search of a nucleus; more only where they do not hold its mass."""

SPARE = 4
"""Draws taken of a state at a time: the action, and the next ones should the walk come back to it."""

Process = Callable[[Tensor], Tensor]
"""Scores float [R, V] -> scores float [R, V]: what logits processors do."""


def next_action_logits(
    logits: Tensor,
    completion_length: Tensor,
    space: ActionSpace,
    config: SamplingConfig,
    *,
    deletions_taken: Tensor | None = None,
    barred: Tensor | None = None,
    process: Process | None = None,
) -> Tensor:
    """Log-probabilities that the next actions are drawn from.

    In this order: illegal actions out; `logit_bias`, and `backspace_logit_bias` on deletions; `process`; deletions out
    where `allow_backspace` or `max_deletions` says so; barred actions out; temperature on all that is left; top-k;
    top-p; min-p; normalisation.

    Args:
        logits: float [R, V], the language model's raw logits, or log-probabilities of the policy (the same up to
            a constant per row). Not changed.
        completion_length: int [R], tokens of completion in each state.
        space: the action space; V must be its `vocab_size`.
        config: the sampling knobs.
        deletions_taken: int [R], deletion actions so far; only read where `max_deletions` is set (zeros if not given).
        barred: bool [R, V], further actions that must not be taken.
        process: changes the scores of the actions in any other way; what is illegal stays so.

    Returns:
        float [R, V]; rows of `-inf` where no action is left. Greedy rows are one-hot: 0 at the argmax.
    """
    scores = action_scores(
        logits, completion_length, space, config, deletions_taken=deletions_taken, barred=barred, process=process
    )
    if config.greedy:
        best = scores.max(-1, keepdim=True)
        scores = torch.full_like(scores, -torch.inf).scatter_(-1, best.indices, best.values)
    return scores.log_softmax(-1).masked_fill(scores == -torch.inf, -torch.inf)


def action_scores(
    logits: Tensor,
    completion_length: Tensor,
    space: ActionSpace,
    config: SamplingConfig,
    *,
    deletions_taken: Tensor | None = None,
    barred: Tensor | None = None,
    process: Process | None = None,
) -> Tensor:
    """`next_action_logits` up to a constant of each row; for greedy decoding, what its best action is the best of."""
    scores = logits.float()
    scores = scores.clone() if scores is logits else scores
    mask_illegal_in_tile_(scores, 0, completion_length, space)
    deletions = [deletion.token_id for deletion in space.deletions]
    for token, bias in config.logit_bias.items():
        scores[:, token] += bias
    if config.backspace_logit_bias:
        for token in deletions:
            scores[:, token] += config.backspace_logit_bias
    if process is not None:
        scores = process(scores).clone()  # a processor may return what it keeps
        mask_illegal_in_tile_(scores, 0, completion_length, space)
    for token in deletions:
        if not config.allow_backspace:
            scores[:, token] = -torch.inf
        elif config.max_deletions is not None:
            taken = torch.zeros_like(completion_length) if deletions_taken is None else deletions_taken
            scores[:, token].masked_fill_(taken >= config.max_deletions, -torch.inf)
    if barred is not None:
        scores.masked_fill_(barred, -torch.inf)
    return scores if config.greedy else _filtered(scores, config)


def _filtered(scores: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, top-k, top-p and min-p, on scores float [R, V] that it may overwrite."""
    if config.temperature != 1:
        # Taking the maximum off first keeps a tiny temperature from overflowing; it cancels in the softmax.
        possible = scores > -torch.inf
        scores = scores.sub_(_finite(scores.amax(-1, keepdim=True))).div_(config.temperature)
        scores.masked_fill_(~possible, -torch.inf)
    if 0 < config.top_k < scores.shape[-1]:
        scores.masked_fill_(scores < scores.topk(config.top_k).values[:, -1:], -torch.inf)
    if config.top_p < 1:
        scores.masked_fill_(scores < _nucleus_edge(scores, config.top_p), -torch.inf)
    if config.min_p > 0:
        least = scores.amax(-1, keepdim=True) + torch.tensor(config.min_p, dtype=torch.float64).log().to(scores)
        scores.masked_fill_(scores < least, -torch.inf)
    return scores


def _nucleus_edge(scores: Tensor, top_p: float) -> Tensor:
    """The lowest score, [R, 1], among the fewest best actions whose probability reaches `top_p`."""
    total = scores.logsumexp(-1, keepdim=True)
    count = min(NUCLEUS, scores.shape[-1])
    while True:
        ranked = scores.topk(count).values
        probability = (ranked - total).exp()
        mass = probability.cumsum(-1)
        if count == scores.shape[-1] or not bool((mass[:, -1] < top_p).any()):
            break
        count = min(8 * count, scores.shape[-1])
    kept = (mass - probability < top_p).sum(-1, keepdim=True)
    return ranked.gather(-1, (kept - 1).clamp(min=0))


def draw(scores: Tensor, config: SamplingConfig, uniforms: Tensor | None) -> Tensor:
    """Several actions for each row, to be tried in turn: int64 [R, m].

    Sampled, they are independent draws of the row's distribution. Greedy decoding has the one best action, or with
    `retry = exclude`, which will need others, the m best of them in order. A row with nothing left gets anything.

    Args:
        scores: float [R, V], as `action_scores` gives them.
        config: the sampling knobs.
        uniforms: float64 [R, m] in [0, 1), the rows' own noise; None if the decoding is greedy.
    """
    if uniforms is not None:
        return draw_actions(scores, uniforms)
    if config.retry == "exclude":
        return scores.topk(min(SPARE, scores.shape[-1])).indices
    return scores.max(-1, keepdim=True).indices


def draw_actions(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from each row's distribution by inverting its cumulative distribution, in float64.

    First among blocks of actions, then inside the block that was hit, so that one pass over all actions is enough.

    Args:
        scores: float [R, V], log-probabilities up to a constant of each row, each row with an action left.
        uniforms: float64 [R, m] in [0, 1).

    Returns:
        int64 [R, m]; never an action of probability zero.
    """
    rows, actions = scores.shape
    blocks = -(-actions // BLOCK)
    weight = scores.new_zeros(rows, blocks * BLOCK)
    torch.sub(scores, _finite(scores.amax(-1, keepdim=True)), out=weight[:, :actions])
    weight[:, :actions].exp_()
    weight = weight.view(rows, blocks, BLOCK)
    sums = weight.sum(-1, dtype=torch.float64).cumsum(-1)
    block, rest = _invert(sums, uniforms * sums[:, -1:])
    row = torch.arange(rows, device=scores.device)[:, None]
    inside, _ = _invert(weight[row, block].double().cumsum(-1).flatten(0, 1), rest.flatten()[:, None])
    # A row with nothing left points past the end.
    return (block * BLOCK + inside.view_as(block)).clamp(max=actions - 1)


def _invert(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry of each row [n, k] above each target [n, m], and the target less the entry before it."""
    total = cumulative[:, -1:]
    # Rounding must not carry a target to the total, past the last entry of positive probability.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)
    before = F.pad(cumulative, (1, 0)).gather(-1, found)
    return found, target - before


def _finite(highest: Tensor) -> Tensor:
    """Zero in place of `-inf`, the maximum where nothing is possible."""
    return highest.masked_fill(highest == -torch.inf, 0.0)
