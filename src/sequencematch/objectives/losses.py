"""The objectives as pure functions of `Steps`. See docs/paper_map.md for where each equation comes from.

Shape legend: S actions of T trajectories; N_i is the number of actions of trajectory i. Every loss is summed over a
trajectory and averaged over trajectories: `denominator`, if given, replaces the number of expert trajectories of this
batch, so that losses of micro-batches and ranks that share one global count add up to the loss of the whole batch.
Never averaged within a trajectory, which would not be a proper scoring rule.

Each loss returns `(loss, components)`. Components are detached scalars for logging, each a mean within this batch
whatever the denominator: over actions for `..._mean`, `bc`, `domain_violations` and `saturated` (weighted by
`Steps.weight` on the expert's side), over trajectories for the others. An empty batch gives zeros. Arithmetic is in
float32, or float64 where the input is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .divergences import Divergence
from .steps import Steps

Components = dict[str, Tensor]

ValueEstimator = Literal["expert", "mixed"]


def rewards(steps: Steps, gamma: float) -> Tensor:
    """The implicit reward of each action, `r_t = Q(s_t, a_t) - gamma V(s_{t+1})`: float [S], undiscounted.

    The soft Bellman operator read backwards (arXiv 2306.05426). Carries gradient to all three values.
    """
    return _wide(steps.q) - gamma * _wide(steps.v_next)


def telescoped_value(steps: Steps, gamma: float) -> Tensor:
    """B of each trajectory: float [T], an estimate of V(s_0) that any policy's trajectory gives.

        B(tau) = sum_{t<N} gamma^t (V(s_t) - gamma V(s_{t+1}))  +  [terminated] gamma^N V(s_N)

    The value term of arXiv 2306.05426. It telescopes: B = V(s_0) exactly for a terminated trajectory of any
    policy, deletions included, and V(s_0) - gamma^N V(s_N) for a truncated one. `Steps.weight` is not read. Carries
    gradient to every value named.
    """
    fall = _value_fall(steps, gamma)
    total = fall.new_zeros(len(steps.length)).index_add(0, steps.trajectory, _discount(gamma, steps.t, fall) * fall)
    last = _terminal_v(steps).to(fall.dtype)
    return total + _discount(gamma, steps.length, last) * last


def bc_loss(expert: Steps, *, denominator: float | Tensor | None = None) -> tuple[Tensor, Components]:
    """Behavioural cloning: the negative log-likelihood of the demonstrated actions, deletions among them.

        L(tau) = - sum_{t<N} w_t log pi(a_t | s_t),    log pi(a|s) = Q(s, a) - V(s)

    L_BC of arXiv 2306.05426, Algorithm 1; on trajectories without deletions it is maximum likelihood. Undiscounted.
    Reads q, v and weight of [S] actions. Sum over actions, mean over T trajectories or sum over `denominator`.
    Gradient to q and v. Differs from the paper by the weights w_t, which are 1 there.

    Components: `bc`, the weighted mean negative log-likelihood of an action.
    """
    nll = _nll(expert)
    weight = expert.weight.to(nll.dtype)
    loss = (weight * nll).sum() / _count(expert, denominator)
    return loss, {"bc": _weighted_mean(nll, weight)}


def iql_offline_loss(
    expert: Steps, *, lam: float, gamma: float, denominator: float | Tensor | None = None
) -> tuple[Tensor, Components]:
    """Maximum likelihood with a penalty on temporal differences, from data only.

        L(tau) = sum_{t<N} w_t (lam r_t^2 - log pi(a_t | s_t)),    r_t = Q(s_t, a_t) - gamma V(s_{t+1})

    Offline IQLearn as Wulfmeier et al. 2024 (arXiv 2409.01369) rewrite it. Undiscounted sum. Reads q, v, v_next and
    weight of [S] actions. Sum over actions, mean over T trajectories or sum over `denominator`. Gradient to q, v and
    v_next, with no stopped target. Differs from the paper by the weights w_t; the absorbing state is seen through the
    last action's v_next alone, with no term of its own.

    Components: `bc`, `expert_reward_mean`, and `expert_penalty`, the mean of `lam sum_t w_t r_t^2` over trajectories.

    Raises InputError unless lam >= 0 and 0 < gamma <= 1.
    """
    if not (lam >= 0 and 0 < gamma <= 1):
        raise InputError(f"iql_offline needs lam >= 0 and a gamma above 0 and up to 1, not lam={lam}, gamma={gamma}")
    reward = rewards(expert, gamma)
    weight = expert.weight.to(reward.dtype)
    penalty = lam * (weight * reward**2).sum()
    likelihood_loss, components = bc_loss(expert, denominator=denominator)
    return likelihood_loss + penalty / _count(expert, denominator), components | {
        "expert_reward_mean": _weighted_mean(reward, weight),
        "expert_penalty": penalty.detach() / _count(expert, None),
    }


def sequencematch_loss(
    expert: Steps,
    policy: Steps | None = None,
    *,
    divergence: Divergence,
    alpha: float,
    gamma: float,
    value_estimator: ValueEstimator = "expert",
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, Components]:
    """Match the policy's occupancy measure to the expert's: the negative of the objective J.

        E(tau) = sum_{t<N} gamma^t w_t phi_alpha(r_t)  +  [terminated] gamma^N / (1-gamma) phi_alpha((1-gamma) V(s_N))
        R(tau) = sum_{t<N} gamma^t (1 - w_t) (V(s_t) - gamma V(s_{t+1}))
        P(tau) = sum_{t<N} gamma^t r_t^2               +  [terminated] gamma^N / (1-gamma) ((1-gamma) V(s_N))^2
        J      = mean_expert (E + R)  -  mean_expert B                          -  c alpha mean_policy P      (expert)
        J      = mean_expert (E + R)  -  1/2 mean_expert B  -  1/2 mean_policy B  -  c alpha mean_policy P    (mixed)

    with `phi_alpha(r) = phi(alpha r) / alpha`, B as in `telescoped_value` and `c = divergence.rollout_penalty`, 1/8 for
    chi2_mixture and 0 otherwise; without a policy its terms are left out, and all of B is the expert's. arXiv
    2306.05426, whose estimator is `mixed`. B being V(s_0) for any policy, both have the same mean over prompts, but
    `expert` reads it at the very prompts that E is read at, so that what a prompt's values have in common cancels, and
    truncated rollouts do not bias it. At the optimum `J = min_pi D(rho, rho_E) / alpha - H(rho)`, all three of them
    sums of gamma^t over a trajectory.

    A weight w_t multiplies the whole of what an action contributes, its reward and its fall in value (R takes back
    1 - w_t of the latter from B): with weight 0, nature moves the expert from s_t on to s_{t+1}. In the limit alpha = 0
    J is `sum_t gamma^t w_t log pi(a_t|s_t)`, and with `mixed` differs from that only by half the difference of
    the two mean B. With all weights 1, R is zero. Weights of the policy's actions are not read, and a truncated
    trajectory has no tail.

    Reads all of both Steps: [S] actions and [T] trajectories each. Sum over a trajectory, mean over each side's
    trajectories; `denominator` divides the expert's sum instead and scales the policy's mean by T_expert / denominator.
    Gradient to every value named, on both sides, not to what sampled the trajectories. A policy without trajectories
    counts as no policy. Differs from the paper: weights, the divergences' normalisation and their clipping.

    Components: `bc`, `expert_reward_mean`, `initial_value` (V(s_0)); `expert_penalty`, the mean of what E lies
    below itself with phi the identity; `domain_violations` and `saturated`, the shares of alpha r below the
    divergence's domain and above its plateau; with a policy `policy_reward_mean` and `policy_penalty` (c alpha P).

    Raises InputError unless 0 < gamma < 1 and alpha >= 0, for an unknown estimator, and if the divergence has a rollout
    penalty and no policy is given.
    """
    if not 0 < gamma < 1:
        raise InputError(f"gamma, the discount, must lie strictly between 0 and 1, but is {gamma}")
    if value_estimator not in get_args(ValueEstimator):
        raise InputError(f"value_estimator is one of {', '.join(get_args(ValueEstimator))}, not {value_estimator!r}")
    if policy is None and divergence.rollout_penalty:
        raise InputError(f"{divergence.name} needs rollouts of the policy; use lecam, its closed form, to do without")
    has_policy = policy is not None and len(policy.length) > 0
    matched = _discounted_sum(expert, gamma, expert.weight, lambda r: divergence.phi_alpha(r, alpha))
    policy_share = 0.5 if has_policy and value_estimator == "mixed" else 0.0
    expert_value = (1 - policy_share) * telescoped_value(expert, gamma).sum()
    count = _count(expert, denominator)
    loss = (expert_value - matched - _restart_value(expert, gamma)) / count
    components = _expert_components(expert, divergence, alpha, gamma)
    if policy is None or not has_policy:
        return loss, components

    ones = torch.ones_like(policy.weight)
    penalty = divergence.rollout_penalty * alpha * _discounted_sum(policy, gamma, ones, torch.square)
    penalty = penalty / len(policy.length)
    policy_side = policy_share * telescoped_value(policy, gamma).mean() + penalty
    return loss + policy_side * (len(expert.length) / count), components | {
        "policy_reward_mean": _weighted_mean(rewards(policy, gamma), ones),
        "policy_penalty": penalty.detach(),
    }


def _restart_value(expert: Steps, gamma: float) -> Tensor:
    """The sum over all trajectories of R: what weights below 1 take back from B."""
    fall = _value_fall(expert, gamma)
    return (_discount(gamma, expert.t, fall) * (1 - expert.weight.to(fall.dtype)) * fall).sum()


@torch.no_grad()
def _expert_components(expert: Steps, divergence: Divergence, alpha: float, gamma: float) -> Components:
    reward, weight = rewards(expert, gamma), expert.weight
    penalty = _discounted_sum(expert, gamma, weight, lambda r: r - divergence.phi_alpha(r, alpha))
    return {
        "bc": _weighted_mean(_nll(expert), weight),
        "expert_reward_mean": _weighted_mean(reward, weight),
        "initial_value": _weighted_mean(expert.v, expert.t == 0),
        "expert_penalty": penalty / _count(expert, None),
        "domain_violations": _weighted_mean(alpha * reward < divergence.domain, weight),
        "saturated": _weighted_mean(alpha * reward > divergence.plateau, weight),
    }


def _discounted_sum(steps: Steps, gamma: float, weight: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum over all trajectories of `gamma^t w_t of(r_t)`, absorbing tails included; `of(0)` must be 0."""
    reward, last = rewards(steps, gamma), _terminal_v(steps)
    head = _discount(gamma, steps.t, reward) * weight.to(reward.dtype) * of(reward)
    tail = _discount(gamma, steps.length, last) / (1 - gamma) * of((1 - gamma) * last)
    return head.sum() + tail.sum()


def _nll(steps: Steps) -> Tensor:
    return _wide(steps.v) - _wide(steps.q)


def _value_fall(steps: Steps, gamma: float) -> Tensor:
    """`V(s_t) - gamma V(s_{t+1})`: float [S]."""
    return _wide(steps.v) - gamma * _wide(steps.v_next)


def _terminal_v(steps: Steps) -> Tensor:
    """V(s_N), and zero where there is no absorbing state: float [T]. Zero has no tail, as phi(0) = 0."""
    return torch.where(steps.terminated, _wide(steps.terminal_v), 0.0)


def _discount(gamma: float, t: Tensor, like: Tensor) -> Tensor:
    """`gamma^t` in the dtype of `like`."""
    return torch.pow(gamma, t.to(like.dtype))


def _wide(values: Tensor) -> Tensor:
    """Half precision is too coarse for differences of logits: float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _count(steps: Steps, denominator: float | Tensor | None) -> float | Tensor:
    return max(len(steps.length), 1) if denominator is None else denominator


@torch.no_grad()
def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean over actions, detached; zero where all weights are."""
    weight = _wide(weight)
    return (weight * values).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
