"""Token-level unlikelihood training (Welleck et al., ICLR 2020, arXiv 1908.04319), and the same as plain loops."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .losses import Components, bc_loss
from .steps import Steps

LEAST = 1e-5
"""The least `1 - pi(c|s)` that a penalty is computed with, as in the authors' program."""


def unlikelihood_loss(
    expert: Steps, candidates: Steps, *, weight: float, denominator: float | Tensor | None = None
) -> tuple[Tensor, Components]:
    """Maximum likelihood, and a penalty on the probability of tokens that the context holds already.

        L(tau) = sum_{t<N} w_t ( -log pi(a_t|s_t)  +  weight * sum_{c in C_t} -log(1 - pi(c|s_t)) )

    with C_t the tokens of the context but a_t. The token-level objective of arXiv 1908.04319; its alpha is `weight`, 1
    there. Reads q, v and weight of [S] actions and of [C] candidates. Sum over actions, mean over the expert's T
    trajectories or sum over `denominator`. Gradient to q and v of both. `1 - pi` is no less than LEAST: beyond, as in
    the authors' program, a candidate has no gradient of its own, and only the likelihood of the action taken brings it
    down. With weight 0 this is `bc_loss`. Differs from the paper by the weights w_t.

    Args:
        expert: the demonstrated actions.
        candidates: a row for each negative candidate of each of them, with the weight of its action.
        weight: of the penalty, at least 0.
        denominator: see `losses`.

    Components: `bc`, and `unlikelihood`, the weighted mean over actions of the sum over candidates.

    Raises InputError for a negative weight.
    """
    if not weight >= 0:
        raise InputError(f"the weight of the unlikelihood term must be at least 0, not {weight}")
    likelihood_loss, components = bc_loss(expert, denominator=denominator)
    q, v, action_weight = (_wide(values) for values in (candidates.q, candidates.v, candidates.weight))
    penalty = -(action_weight * torch.log1p(-(q - v).exp().clamp(max=1 - LEAST))).sum()
    count = max(len(expert.length), 1) if denominator is None else denominator
    actions = _wide(expert.weight).sum().clamp(min=torch.finfo(penalty.dtype).tiny)
    return likelihood_loss + weight * penalty / count, components | {"unlikelihood": penalty.detach() / actions}


def unlikelihood_loss_reference(
    log_probs: Sequence[Tensor],
    prompts: Sequence[Sequence[int]],
    actions: Sequence[Sequence[int]],
    *,
    weight: float,
    never: Collection[int],
    denominator: float | None = None,
) -> Tensor:
    """`unlikelihood_loss` of trajectories without deletions as loops over steps and candidates. Slow on purpose.

    Args:
        log_probs: for each trajectory log pi(.|s_t) of all actions in all its states, float [N, V].
        prompts: token ids.
        actions: token ids, N of each trajectory.
        weight: of the penalty.
        never: tokens that are no candidates.
        denominator: in place of the number of trajectories.
    """
    total = torch.zeros(())
    for rows, prompt, taken in zip(log_probs, prompts, actions, strict=True):
        for t, (row, action) in enumerate(zip(rows, taken, strict=True)):
            total = total - row[action]
            for candidate in {*prompt, *taken[:t]} - {action, *never}:
                total = total - weight * (1 - row[candidate].exp()).clamp(min=LEAST).log()
    return total / (denominator or len(log_probs) or 1)


def _wide(values: Tensor) -> Tensor:
    """Half precision is too coarse for differences of logits: float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
