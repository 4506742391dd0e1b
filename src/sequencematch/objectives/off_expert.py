"""What the optimum's rewards are where the expert never goes, as a loss on rollouts, and the same as plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from .divergences import Divergence
from .losses import Components, rewards
from .steps import Steps


def least_reward(divergence: Divergence, alpha: float) -> float:
    """The implicit reward of whatever the expert never does: the lower end of phi's domain, over alpha.

    At the optimum of the objective `alpha r = -f'(rho / rho_E)`, which falls to the end of the domain where rho_E is
    zero: -2 / alpha for lecam. Raises InputError for a divergence whose rewards are not bounded below, and for alpha 0.
    """
    if math.isinf(divergence.domain) or not alpha > 0:
        raise InputError(
            f"{divergence.name} at alpha {alpha:g} sets no least reward for what the expert never does; use lecam, js, "
            "hellinger or kl, and an alpha above 0"
        )
    return divergence.domain / alpha


def off_expert_loss(
    policy: Steps,
    deletions: Steps,
    astray: Tensor,
    *,
    divergence: Divergence,
    alpha: float,
    gamma: float,
    counterfactual_weight: float,
    scale: float | Tensor = 1.0,
) -> tuple[Tensor, Components]:
    """Rewards off the expert's way, held to what they are at the optimum: the expectations that data cannot teach.

        L(tau) = sum_{t<N} d_t (r_t - c)^2  +  [s_N is off the way] ((1-gamma) V(s_N) - c)^2 / (1-gamma)
               + counterfactual_weight * sum_{t<N} [s_t is off the way] sum_x (Q(s_t, x) - gamma sg V(s_t - x) - c)^2

    with `c = least_reward(divergence, alpha)`, d_t whether the expert never does this, x the legal deletions, taken or
    not, s_t - x the ancestor that x leads to, and sg no gradient. Not in arXiv 2306.05426, whose rollouts pull these
    rewards to 0 (chi2_mixture); c is the exact value (see `least_reward`), and what makes leaving such states worth it.
    The second line needs no rollout that deletes, and so no demonstration of a deletion. A trajectory that a limit cut
    off the way has its tail as well: else running into the limit would cost nothing. Undiscounted: its minimum is the
    same under any positive weights.

    Args:
        policy: rollouts, [S] actions of [T] trajectories; `weight` is d_t, 0 or 1.
        deletions: the C legal deletions in the rollouts' states off the way, as if taken there.
        astray: bool [T], whether s_N, the state each trajectory ended in, is off the way.
        divergence: with a finite domain.
        alpha: above 0.
        gamma: the discount, between 0 and 1.
        counterfactual_weight: of the second line, at least 0.
        scale: multiplies the mean over trajectories.

    Gradient to q and v_next of `policy` and its terminal_v, and to q of `deletions`, not to their v_next.

    Components: `off_expert` and `counterfactual`, the means over trajectories of the two lines without their weights,
    and `off_expert_share`, how many actions the expert never does.

    Raises InputError as `least_reward` does.
    """
    least = least_reward(divergence, alpha)
    count = max(len(policy.length), 1)
    reward = rewards(policy, gamma)
    departs = policy.weight.to(reward.dtype)
    last = torch.where(astray, policy.terminal_v.to(reward.dtype), least / (1 - gamma))
    taken = (departs * (reward - least) ** 2).sum() + (((1 - gamma) * last - least) ** 2).sum() / (1 - gamma)
    missed = (deletions.q.to(reward.dtype) - gamma * deletions.v_next.detach().to(reward.dtype) - least) ** 2
    taken, untaken = taken / count, missed.sum() / count
    return scale * (taken + counterfactual_weight * untaken), {
        "off_expert": taken.detach(),
        "counterfactual": untaken.detach(),
        "off_expert_share": departs.sum() / max(len(departs), 1),
    }


def off_expert_loss_reference(
    policy: Steps,
    deletions: Steps,
    astray: Tensor,
    *,
    divergence: Divergence,
    alpha: float,
    gamma: float,
    counterfactual_weight: float,
    scale: float = 1.0,
) -> Tensor:
    """`off_expert_loss` as loops, term by term."""
    least = divergence.domain / alpha
    total = torch.zeros((), dtype=policy.q.dtype)
    for k in range(len(policy.q)):
        if policy.weight[k]:
            total = total + (policy.q[k] - gamma * policy.v_next[k] - least) ** 2
    for i in range(len(policy.length)):
        if astray[i]:
            total = total + ((1 - gamma) * policy.terminal_v[i] - least) ** 2 / (1 - gamma)
    for k in range(len(deletions.q)):
        target = least + gamma * deletions.v_next[k].item()
        total = total + counterfactual_weight * (deletions.q[k] - target) ** 2
    return scale * total / (len(policy.length) or 1)
