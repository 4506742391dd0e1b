"""The losses against their references, and the identities they rest on."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives_tabular import GAMMA, TabularMDP, walks

from sequencematch.errors import InputError
from sequencematch.mdp import ALL
from sequencematch.objectives import (
    DIVERGENCES,
    Steps,
    bc_loss,
    bc_loss_reference,
    get_divergence,
    iql_offline_loss,
    iql_offline_loss_reference,
    rewards,
    sequencematch_loss,
    sequencematch_loss_reference,
    telescoped_value,
)

CLOSED = [name for name in DIVERGENCES if name != "chi2_mixture"]
LEAVES = ("q", "v", "v_next", "terminal_v")


def random_steps(seed, terminated=(True, False, True), dtype=torch.float64, scale=2.0):
    """Unrelated random values, rows shuffled: the losses may not rely on v_next of one row being v of another."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 6, (len(terminated),), generator=g)
    owner = torch.repeat_interleave(torch.arange(len(terminated)), length)
    t = torch.cat([torch.arange(n) for n in length.tolist()]) if len(terminated) else owner.clone()
    order = torch.randperm(len(t), generator=g)
    q, v, v_next = (scale * torch.randn(3, len(t), generator=g, dtype=dtype)).unbind()
    terminal_v = scale * torch.randn(len(terminated), generator=g, dtype=dtype)
    weight = torch.rand(len(t), generator=g, dtype=dtype)
    flags = torch.tensor(terminated, dtype=torch.bool)
    leaves = [x.clone().requires_grad_() for x in (q, v, v_next)]
    return Steps(*leaves, t[order], weight, owner[order], length, terminal_v.requires_grad_(), flags)


def gradients(loss, *batches):
    leaves = [getattr(steps, name) for steps in batches if steps is not None for name in LEAVES]
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(
            leaves, torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True), strict=True
        )
    ]


def assert_same(fast, slow, *batches):
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, *batches), gradients(slow, *batches))


@pytest.mark.parametrize("denominator", [None, 7.0])
@pytest.mark.parametrize("terminated", [(True, True), (False, False), (True, False, True)])
@pytest.mark.parametrize("value_estimator", ["expert", "mixed"])
@pytest.mark.parametrize(
    ("name", "with_policy"), [*((name, False) for name in CLOSED), *((name, True) for name in DIVERGENCES)]
)
def test_sequencematch_equals_its_reference(name, with_policy, value_estimator, terminated, denominator):
    expert = random_steps(0, terminated)
    policy = random_steps(1, (False, *terminated)) if with_policy else None
    arguments = {"divergence": get_divergence(name), "alpha": 0.3, "gamma": 0.9, "denominator": denominator}
    arguments["value_estimator"] = value_estimator
    fast, _ = sequencematch_loss(expert, policy, **arguments)
    slow = sequencematch_loss_reference(expert, policy, **arguments)
    assert_same(fast, slow, expert, policy)


@pytest.mark.parametrize("denominator", [None, 7.0])
def test_likelihood_losses_equal_their_references(denominator):
    expert = random_steps(0)
    assert_same(bc_loss(expert, denominator=denominator)[0], bc_loss_reference(expert, denominator=denominator), expert)
    arguments = {"lam": 0.2, "gamma": 0.95, "denominator": denominator}
    assert_same(iql_offline_loss(expert, **arguments)[0], iql_offline_loss_reference(expert, **arguments), expert)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, ALL]), st.sampled_from([0.5, 0.9, 0.998]), st.integers(1, 12))
def test_value_telescopes_along_any_walk(seed, length, gamma, limit):
    mdp = TabularMDP(length)
    x = torch.cat([mdp.random_logits(seed), torch.tensor([1.5])])
    sample = walks(mdp, mdp.sample(mdp.random_logits(seed + 1), count=3, seed=seed, limit=limit))(x)
    v = mdp.values(x[:-1], x[-1])
    final = torch.stack(
        [sample.v_next[(sample.trajectory == i) & (sample.t == n - 1)][0] for i, n in enumerate(sample.length)]
    )
    expected = v[0] - gamma ** sample.length.double() * torch.where(sample.terminated, 0.0, final)
    torch.testing.assert_close(telescoped_value(sample, gamma), expected)


def _discounted_likelihood(expert, gamma):
    log_pi = expert.q - expert.v
    return -(gamma ** expert.t.double() * expert.weight * log_pi).sum() / len(expert.length)


@pytest.mark.parametrize("alpha", [0.0, 1e-7])
@pytest.mark.parametrize("name", CLOSED)
def test_alpha_to_zero_is_discounted_maximum_likelihood(name, alpha):
    """For any weights: an action of weight 0 says nothing about the policy."""
    mdp = TabularMDP(1)
    x = torch.cat([mdp.random_logits(0), torch.tensor([0.5])]).requires_grad_()
    expert = walks(mdp, mdp.sample(mdp.random_logits(1), count=20, seed=0, limit=6))(x)
    expert = replace(expert, weight=torch.rand(len(expert.t), generator=torch.Generator().manual_seed(0)).double())
    loss, _ = sequencematch_loss(expert, divergence=get_divergence(name), alpha=alpha, gamma=GAMMA)
    likelihood = _discounted_likelihood(expert, GAMMA)
    torch.testing.assert_close(loss, likelihood, rtol=1e-4, atol=1e-4)
    found, expected = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (loss, likelihood))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value_estimator", ["expert", "mixed"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_alpha_to_zero_with_rollouts_is_the_same(name, value_estimator):
    """Terminated walks from one start: both halves of the value are V(s_0), and cancel, whatever the weights."""
    mdp = TabularMDP(1)
    x = torch.cat([mdp.random_logits(0), torch.tensor([0.5])]).requires_grad_()
    expert = walks(mdp, mdp.sample(mdp.random_logits(1), count=20, seed=0))(x)
    expert = replace(expert, weight=torch.rand(len(expert.t), generator=torch.Generator().manual_seed(0)).double())
    policy = walks(mdp, mdp.sample(mdp.random_logits(2), count=5, seed=1))(x)
    divergence = get_divergence(name)
    loss, _ = sequencematch_loss(
        expert, policy, divergence=divergence, alpha=0.0, gamma=GAMMA, value_estimator=value_estimator
    )
    likelihood = _discounted_likelihood(expert, GAMMA)
    found, expected = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (loss, likelihood))
    torch.testing.assert_close(loss, likelihood)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_both_estimators_of_the_value_agree_on_whole_rollouts_from_the_same_start(name):
    """B is V(s_0) for any policy; what a limit cut is not, and only there do the two differ."""
    mdp = TabularMDP(1)
    x = torch.cat([mdp.random_logits(0), torch.tensor([0.5])]).requires_grad_()
    expert = walks(mdp, mdp.sample(mdp.random_logits(1), count=9, seed=0))(x)
    options = {"divergence": get_divergence(name), "alpha": 0.3, "gamma": GAMMA}

    def losses(limit):
        policy = walks(mdp, mdp.sample(mdp.random_logits(2), count=9, seed=1, limit=limit))(x)
        return [sequencematch_loss(expert, policy, value_estimator=e, **options)[0] for e in ("expert", "mixed")]

    ours, papers = losses(limit=10_000)
    torch.testing.assert_close(ours, papers)
    gradients_of = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (ours, papers)]
    torch.testing.assert_close(*gradients_of)
    ours, papers = losses(limit=2)
    assert (ours - papers).detach().abs() > 1e-3


def _all_losses(expert, policy, denominator=None):
    shared = {"gamma": 0.9, "denominator": denominator}
    yield bc_loss(expert, denominator=denominator)
    yield iql_offline_loss(expert, lam=0.1, **shared)
    for divergence in DIVERGENCES.values():
        for estimator in ("expert", "mixed"):
            options = {"divergence": divergence, "alpha": 0.2, "value_estimator": estimator}
            yield sequencematch_loss(expert, policy, **options, **shared)


@pytest.mark.parametrize("empty_policy", [False, True])
@pytest.mark.parametrize("empty_expert", [False, True])
def test_empty_batches_are_zero_and_finite(empty_expert, empty_policy):
    expert = random_steps(0, () if empty_expert else (True, False))
    policy = random_steps(1, () if empty_policy else (True, False))
    for loss, components in _all_losses(expert, policy):
        assert loss.isfinite()
        assert all(value.isfinite() for value in components.values())
        assert all(gradient.isfinite().all() for gradient in gradients(loss, expert, policy))
        if empty_expert:
            assert loss == 0


def test_a_policy_without_trajectories_is_no_policy():
    expert, arguments = random_steps(0), {"divergence": get_divergence("kl"), "alpha": 0.2, "gamma": 0.9}
    assert sequencematch_loss(expert, random_steps(1, ()), **arguments) == sequencematch_loss(expert, **arguments)


def test_weightless_actions_leave_only_the_absorbing_state():
    """With all weights 0 nature moves the expert to its end; only the tail's reward is left to be matched."""
    steps = random_steps(0)
    expert = replace(steps, weight=torch.zeros_like(steps.weight))
    assert bc_loss(expert)[0] == iql_offline_loss(expert, lam=1.0, gamma=0.9)[0] == 0
    loss, components = sequencematch_loss(expert, divergence=get_divergence("kl"), alpha=0.2, gamma=0.9)
    for gradient in gradients(loss, expert)[:3]:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert all(value.isfinite() for value in components.values())
    assert components["bc"] == 0


def _halves(steps):
    """The same trajectories as two batches."""
    first = torch.arange(len(steps.length)) < len(steps.length) // 2
    return steps.subset(first), steps.subset(~first)


def test_micro_batches_with_one_denominator_add_up_to_the_batch():
    expert, policy = random_steps(0, (True, False, True, True)), random_steps(1, (False, True))
    whole = [loss for loss, _ in _all_losses(expert, policy)]
    parts = [_all_losses(e, p, denominator=4) for e, p in zip(_halves(expert), _halves(policy), strict=True)]
    for together, *losses in zip(whole, *parts, strict=True):
        assert_same(sum(loss for loss, _ in losses), together, expert, policy)


def test_what_is_not_to_be_read_is_not_read():
    """The terminal value of truncated trajectories, even NaN, and the weights of the policy's actions."""
    arguments = {"divergence": get_divergence("chi2_mixture"), "alpha": 0.2, "gamma": 0.9, "value_estimator": "mixed"}
    expert, policy = random_steps(0, (False, True)), random_steps(1, (False, True))
    loss, _ = sequencematch_loss(expert, policy, **arguments)
    unread = torch.tensor([math.nan, 0.0])
    marred = [replace(x, terminal_v=(x.terminal_v.detach() + unread).requires_grad_()) for x in (expert, policy)]
    marred[1] = replace(marred[1], weight=torch.full_like(policy.weight, math.nan))
    again, components = sequencematch_loss(*marred, **arguments)
    torch.testing.assert_close(again, loss)
    assert all(gradient.isfinite().all() for gradient in gradients(again, *marred))
    assert all(value.isfinite() for value in components.values())


def test_half_precision_is_widened():
    steps = random_steps(0, dtype=torch.float32)
    halves = {f.name: getattr(steps, f.name).detach() for f in fields(Steps) if f.name != "deletes"}
    halves |= {name: halves[name].bfloat16() for name in LEAVES}
    wide = {name: value.float() if value.is_floating_point() else value for name, value in halves.items()}
    for (low, _), (high, _) in zip(
        _all_losses(Steps(**halves), Steps(**halves)), _all_losses(Steps(**wide), Steps(**wide)), strict=True
    ):
        assert low.dtype == torch.float32
        assert low == high


def test_components_by_hand():
    """Two actions and the end: gamma 0.5, alpha 1, kl with its domain at -1."""
    expert = Steps(
        q=torch.tensor([1.0, -3.0]),
        v=torch.tensor([2.0, 1.0]),
        v_next=torch.tensor([1.0, 4.0]),
        t=torch.tensor([0, 1]),
        weight=torch.tensor([1.0, 0.25]),
        trajectory=torch.tensor([0, 0]),
        length=torch.tensor([2]),
        terminal_v=torch.tensor([4.0]),
        terminated=torch.tensor([True]),
    )
    policy = replace(expert, q=torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(rewards(expert, 0.5), torch.tensor([0.5, -5.0]))
    _, found = sequencematch_loss(expert, policy, divergence=get_divergence("kl"), alpha=1.0, gamma=0.5)
    assert set(found) == {
        *("bc", "expert_reward_mean", "initial_value", "expert_penalty", "domain_violations", "saturated"),
        *("policy_reward_mean", "policy_penalty"),
    }
    assert found["bc"] == (1 * 1 + 0.25 * 4) / 1.25
    assert found["expert_reward_mean"] == (0.5 - 0.25 * 5) / 1.25
    assert found["initial_value"] == 2
    assert found["domain_violations"] == 0.25 / 1.25
    assert found["saturated"] == found["policy_penalty"] == 0
    assert found["policy_reward_mean"] == (-0.5 - 2.0) / 2
    _, found = sequencematch_loss(expert, policy, divergence=get_divergence("chi2_mixture"), alpha=1.0, gamma=0.5)
    # Squares 0.5^2, 5^2 and, absorbed, (0.5 * 4)^2 for ever; the policy's are -0.5, -2 and the same.
    torch.testing.assert_close(found["expert_penalty"], torch.tensor((0.25 + 0.5 * 0.25 * 25 + 0.25 / 0.5 * 4) / 8))
    torch.testing.assert_close(found["policy_penalty"], torch.tensor((0.25 + 0.5 * 4 + 0.25 / 0.5 * 4) / 8))
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_discount_outside_the_unit_interval_is_refused(gamma):
    with pytest.raises(InputError, match="gamma"):
        sequencematch_loss(random_steps(0), divergence=get_divergence("kl"), alpha=0.1, gamma=gamma)


def test_other_bad_arguments_are_refused():
    expert = random_steps(0)
    with pytest.raises(InputError, match="needs rollouts"):
        sequencematch_loss(expert, divergence=get_divergence("chi2_mixture"), alpha=0.1, gamma=0.9)
    with pytest.raises(InputError, match="negative"):
        sequencematch_loss(expert, divergence=get_divergence("kl"), alpha=-0.1, gamma=0.9)
    for lam, gamma in ((-1.0, 0.9), (0.1, 0.0), (0.1, 1.1)):
        with pytest.raises(InputError, match="iql_offline needs"):
            iql_offline_loss(expert, lam=lam, gamma=gamma)


def test_unknown_value_estimator_is_refused():
    options = {"alpha": 0.1, "gamma": 0.9, "value_estimator": "policy"}
    with pytest.raises(InputError, match="value_estimator is one of expert, mixed"):
        sequencematch_loss(random_steps(0), divergence=get_divergence("kl"), **options)
