"""The generators f and conjugates phi: one against the other, their normalisation, and their numerics."""

import math

import pytest
import torch

from sequencematch.errors import InputError
from sequencematch.objectives import DIVERGENCES, MAX_RATIO, get_divergence

CLOSED = [name for name in DIVERGENCES if name != "chi2_mixture"]
BOUNDED = [name for name in CLOSED if name != "chi2"]
# Where phi's slope reaches MAX_RATIO, from u(x) = phi'(x) solved by hand.
MARGIN = {
    "lecam": 8 / (MAX_RATIO + 1) ** 2 - 2,
    "kl": 1 / MAX_RATIO - 1,
    "reverse_kl": -math.log(MAX_RATIO),
    "js": math.log((1 + MAX_RATIO) / (2 * MAX_RATIO)),
    "hellinger": 2 / math.sqrt(MAX_RATIO) - 2,
}


def _slope(function, at):
    x = torch.as_tensor(at).clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def _grid(low, high, count=401):
    return torch.linspace(low, high, count, dtype=torch.float64)


@pytest.mark.parametrize("name", CLOSED)
def test_phi_is_the_conjugate_of_f(name):
    """Below the domain included: there phi is the infimum over density ratios up to MAX_RATIO."""
    divergence = get_divergence(name)
    u = torch.cat([torch.zeros(1), torch.logspace(-5, math.log10(MAX_RATIO), 40_001)]).double().clamp(max=MAX_RATIO)
    x = _grid(-8, 8, 161)
    infimum = (x[:, None] * u + divergence.f(u)).amin(dim=1)
    torch.testing.assert_close(divergence.phi(x), infimum, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_normalisation(name):
    divergence = get_divergence(name)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert divergence.name == name
    assert divergence.phi(zero) == 0
    assert _slope(divergence.phi, zero) == 1
    assert divergence.f(one) == 0
    assert _slope(divergence.f, one) == 0
    assert divergence.f(_grid(0.01, 5)).min() >= 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_phi_is_concave_and_c1(name):
    slope = _slope(get_divergence(name).phi, _grid(-10, 10, 200_001))
    assert (slope.diff() <= 1e-9).all(), "concave"
    if name in CLOSED:
        assert (slope >= 0).all(), "a slope is a density ratio"


@pytest.mark.parametrize("name", BOUNDED)
def test_tangent_below_the_margin(name):
    divergence = get_divergence(name)
    margin = torch.tensor([MARGIN[name]], dtype=torch.float64)
    assert margin > divergence.domain
    for at in (margin - 1e-12, margin, margin + 1e-12):
        torch.testing.assert_close(_slope(divergence.phi, at), torch.tensor([MAX_RATIO]).double(), rtol=1e-5, atol=0)
    below = margin - torch.tensor([0.5, 3.0, 1000.0])
    torch.testing.assert_close(divergence.phi(below), divergence.phi(margin) + MAX_RATIO * (below - margin))


@pytest.mark.parametrize("name", ["chi2", "lecam"])
def test_plateau_is_met_smoothly_and_has_no_slope(name):
    divergence = get_divergence(name)
    x = divergence.plateau + torch.tensor([-1e-6, 0.0, 1e-6, 100.0], dtype=torch.float64)
    torch.testing.assert_close(_slope(divergence.phi, x), torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(divergence.phi(x), divergence.phi(x[1]).expand(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_rewards_have_finite_values_and_live_gradients(name, dtype):
    divergence = get_divergence(name)
    edges = [divergence.domain] if math.isfinite(divergence.domain) else []
    x = torch.tensor([-1e6, -1e3, -90.0, -20.0, *edges, 0.0, 20.0, 90.0, 1e6], dtype=dtype)
    slope = _slope(divergence.phi, x)
    assert divergence.phi(x).isfinite().all()
    assert slope.isfinite().all()
    assert (slope[x < 0] >= 1).all()
    assert divergence.phi(x).dtype == slope.dtype == dtype


@pytest.mark.parametrize("name", DIVERGENCES)
def test_phi_alpha_tends_to_the_identity(name):
    divergence = get_divergence(name)
    reward = torch.linspace(-30, 30, 101)
    assert divergence.phi_alpha(reward, 0.0) is reward
    for alpha in (1e-6, 1e-9, 1e-20):
        torch.testing.assert_close(divergence.phi_alpha(reward, alpha), reward, rtol=1e-4, atol=0)
    torch.testing.assert_close(divergence.phi_alpha(reward, 0.5), divergence.phi(0.5 * reward) * 2)
    for alpha in (-0.1, math.nan):
        with pytest.raises(InputError, match="must not be negative"):
            divergence.phi_alpha(reward, alpha)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'tv'.*chi2, chi2_mixture, lecam, kl, reverse_kl, js, hellinger"):
        get_divergence("tv")


def test_only_the_sampled_mixture_needs_rollouts():
    assert {name: d.rollout_penalty for name, d in DIVERGENCES.items() if d.rollout_penalty} == {"chi2_mixture": 1 / 8}
