"""The objectives written out as loops over trajectories and steps, for checking `losses` against. Slow on purpose.

Every function takes what its namesake in `losses` takes and returns the loss alone, a scalar tensor with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .divergences import Divergence
from .steps import Steps


def bc_loss_reference(expert: Steps, *, denominator: float | None = None) -> Tensor:
    """`bc_loss` as a double loop."""
    total = _zero(expert)
    for i in range(len(expert.length)):
        for k in _walk(expert, i):
            total = total - expert.weight[k] * (expert.q[k] - expert.v[k])
    return total / (denominator or len(expert.length) or 1)


def iql_offline_loss_reference(expert: Steps, *, lam: float, gamma: float, denominator: float | None = None) -> Tensor:
    """`iql_offline_loss` as a double loop."""
    total = _zero(expert)
    for i in range(len(expert.length)):
        for k in _walk(expert, i):
            reward = expert.q[k] - gamma * expert.v_next[k]
            log_pi = expert.q[k] - expert.v[k]
            total = total + expert.weight[k] * (lam * reward**2 - log_pi)
    return total / (denominator or len(expert.length) or 1)


def sequencematch_loss_reference(
    expert: Steps,
    policy: Steps | None = None,
    *,
    divergence: Divergence,
    alpha: float,
    gamma: float,
    value_estimator: str = "expert",
    denominator: float | None = None,
) -> Tensor:
    """`sequencematch_loss` as a double loop: -J, term by term."""
    rollouts = policy if policy is not None and len(policy.length) else None
    expert_share = 0.5 if rollouts is not None and value_estimator == "mixed" else 1.0
    n_expert = len(expert.length)
    objective = _zero(expert)
    for i in range(n_expert):
        for t, k in enumerate(_walk(expert, i)):
            w, v, v_next = expert.weight[k], expert.v[k], expert.v_next[k]
            reward = expert.q[k] - gamma * v_next
            objective = objective + gamma**t * w * _phi_alpha(divergence, reward, alpha)
            objective = objective + gamma**t * (1 - w) * (v - gamma * v_next)
        if expert.terminated[i]:
            n, v_last = int(expert.length[i]), expert.terminal_v[i]
            objective = objective + gamma**n / (1 - gamma) * _phi_alpha(divergence, (1 - gamma) * v_last, alpha)
        objective = objective - expert_share * _telescoped(expert, i, gamma)
    objective = objective / (denominator or n_expert or 1)
    if rollouts is None:
        return -objective

    policy_terms = _zero(rollouts)
    for i in range(len(rollouts.length)):
        squares = _zero(rollouts)
        for t, k in enumerate(_walk(rollouts, i)):
            squares = squares + gamma**t * (rollouts.q[k] - gamma * rollouts.v_next[k]) ** 2
        if rollouts.terminated[i]:
            squares = squares + gamma ** int(rollouts.length[i]) * (1 - gamma) * rollouts.terminal_v[i] ** 2
        policy_terms = policy_terms + (1 - expert_share) * _telescoped(rollouts, i, gamma)
        policy_terms = policy_terms + divergence.rollout_penalty * alpha * squares
    scale = n_expert / (denominator or n_expert or 1)
    return -objective + scale * policy_terms / len(rollouts.length)


def _telescoped(steps: Steps, i: int, gamma: float) -> Tensor:
    """B of trajectory i, its sum left as it stands."""
    total = _zero(steps)
    for t, k in enumerate(_walk(steps, i)):
        total = total + gamma**t * (steps.v[k] - gamma * steps.v_next[k])
    if steps.terminated[i]:
        total = total + gamma ** int(steps.length[i]) * steps.terminal_v[i]
    return total


def _phi_alpha(divergence: Divergence, reward: Tensor, alpha: float) -> Tensor:
    return reward if alpha == 0 else divergence.phi(alpha * reward) / alpha


def _walk(steps: Steps, i: int) -> list[int]:
    """The rows of trajectory i in the order of its actions."""
    rows = torch.nonzero(steps.trajectory == i).flatten().tolist()
    return sorted(rows, key=lambda k: int(steps.t[k]))


def _zero(steps: Steps) -> Tensor:
    return torch.zeros((), dtype=steps.q.dtype, device=steps.q.device)
