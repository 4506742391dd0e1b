"""What the model thinks of each step of a walk: the implicit reward of the action, and the value of the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from ..mdp import ActionSpace
from ..models import evaluate_states, evaluation_mode
from ..objectives import rewards
from .walks import tree_batches

if TYPE_CHECKING:
    from ..rollouts import Rollout


def walk_values(
    model: Any,
    space: ActionSpace,
    rollouts: Sequence[Rollout],
    gamma: float,
    terminal_value: str = "learned",
    batch_size: int = 16,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The reward r(s_t, a_t) = Q(s_t, a_t) - gamma V(s_{t+1}) and the value V(s_t) at every action of each rollout.

    Implicit in the model's logits (arXiv 2306.05426): Q is the action's logit, V the logsumexp over the legal actions.
    Along a walk, log pi(a_t|s_t) = r_t + gamma V(s_{t+1}) - V(s_t). One forward pass over the trees of each batch. Only
    training with gamma ties values of different states to each other: after plain maximum likelihood they mean nothing.

    Args:
        model: the causal language model, on its device; see `prepare_model`. It is evaluated in evaluation mode.
        space: the action space that decides what is legal.
        rollouts: the walks, of this model or another.
        gamma: the discount that the model was trained with.
        terminal_value: V(s_N), as in training: `learned` or `zero`; see `evaluate_states`.
        batch_size: rollouts in one forward pass.

    Returns:
        for each rollout of N actions rewards and values, float64 [N] each, in nats.

    Raises InputError unless 0 < gamma <= 1, for a rollout that does not fit the model's positions or the action space,
    and for values that are not finite.
    """
    if not 0 < gamma <= 1:
        raise InputError(f"gamma, the discount, must lie above 0 and up to 1, but is {gamma}")
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in tree_batches(model, space, [rollout.trajectory for rollout in rollouts], batch_size):
        with evaluation_mode(model), torch.no_grad():
            steps = evaluate_states(model, batch, space, terminal_value)
        both = torch.stack([rewards(steps, gamma), steps.v]).double().cpu().numpy()
        if not np.isfinite(both).all():
            raise InputError("the model's values are not finite; its weights may have diverged")
        ends = batch.length.cumsum(0).tolist()[:-1]
        found += [(reward, value) for reward, value in np.split(both, ends, axis=1)]
    return found
