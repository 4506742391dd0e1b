"""The f-divergences that an occupancy measure can be matched with, each as its generator f and concave conjugate phi.

All are normalised to `f(1) = f'(1) = 0`, `phi(0) = 0`, `phi'(0) = 1`, so that one `alpha` means the same for each.
Everything here is elementwise: tensors of any shape in, the same shape out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

MAX_RATIO = 1000.0
"""The largest density ratio, which is to say slope of phi, that the divergences with unbounded slope allow."""


@dataclass(frozen=True)
class Divergence:
    """A divergence `D(rho, rho_E) = E_{rho_E}[f(u)]` of the policy's occupancy from the expert's, `u = rho / rho_E`.

    The objective needs its concave conjugate `phi(x) = inf_{u >= 0} (x u + f(u))`. Its slope is the minimiser u: the
    density ratio for which the implicit reward x is right. Where that slope grows without bound (`lecam`, `kl`,
    `reverse_kl`, `js`, `hellinger`) the infimum is over `0 <= u <= MAX_RATIO`: the exact conjugate of the same f
    restricted to such ratios. That is phi itself down to the x where its slope is MAX_RATIO and the tangent below: it
    is concave, C1, finite on all reals, and its gradient does not die outside the domain.

    Differences from the paper (see docs/paper_map.md): the normalisation, which the paper leaves to alpha, and the
    tangent; the paper's chi2 is not clipped where u would be negative.
    """

    name: str
    """The name that `get_divergence` knows it by."""
    f: Callable[[Tensor], Tensor]
    """The generator, of density ratios u >= 0; may be infinite at 0."""
    phi: Callable[[Tensor], Tensor]
    """The conjugate, of implicit rewards x; finite and differentiable on all reals."""
    domain: float = -math.inf
    """Where phi would be -inf below, were ratios not bounded; -inf for all reals."""
    plateau: float = math.inf
    """From here upwards phi is constant, as u = 0; inf where it never is."""
    rollout_penalty: float = 0.0
    """c in the penalty `-c alpha r^2` on the policy's rollouts; zero for a divergence that needs none."""

    def phi_alpha(self, reward: Tensor, alpha: float) -> Tensor:
        """`phi(alpha r) / alpha`, which is r itself in the limit `alpha = 0`. Raises InputError if alpha < 0."""
        if not alpha >= 0:
            raise InputError(f"alpha, the weight of the entropy, must not be negative, but is {alpha}")
        return self.phi(alpha * reward) / alpha if alpha else reward


def get_divergence(name: str) -> Divergence:
    """The divergence of that name (see DIVERGENCES). Raises InputError for a name it does not know."""
    if name not in DIVERGENCES:
        raise InputError(f"there is no divergence {name!r}; choose one of {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]


def _bounded(core: Callable[[Tensor], Tensor], margin: float) -> Callable[[Tensor], Tensor]:
    """`core` above `margin`, where its slope is MAX_RATIO, and its tangent below."""

    def phi(x: Tensor) -> Tensor:
        # The clamp keeps core away from what it cannot take, so that no NaN is made that a mask would have to hide.
        return core(x.clamp(min=margin)) - MAX_RATIO * torch.relu(margin - x)

    return phi


def _chi2_f(u: Tensor) -> Tensor:
    return (u - 1) ** 2


def _chi2_phi(x: Tensor) -> Tensor:
    x = x.clamp(max=2)
    return x - x**2 / 4


def _lecam_f(u: Tensor) -> Tensor:
    return 2 * (1 - u) ** 2 / (1 + u)


def _lecam_core(x: Tensor) -> Tensor:
    # 4 sqrt(2 (x + 2)) - x - 8 in terms of h = sqrt(1 + x / 2) - 1, so that nothing cancels when x is small.
    half = x.clamp(max=6) / 2
    h = half / (1 + torch.sqrt(1 + half))
    return 4 * h - 2 * h**2


def _chi2_mixture_phi(x: Tensor) -> Tensor:
    return x - x**2 / 8


def _kl_f(u: Tensor) -> Tensor:
    return u - 1 - torch.log(u)


def _reverse_kl_f(u: Tensor) -> Tensor:
    return torch.xlogy(u, u) - u + 1


def _reverse_kl_core(x: Tensor) -> Tensor:
    return -torch.expm1(-x)


def _js_f(u: Tensor) -> Tensor:
    return torch.xlogy(u, u) - (1 + u) * torch.log((1 + u) / 2)


def _js_core(x: Tensor) -> Tensor:
    return torch.log1p(-torch.expm1(-x))


def _hellinger_f(u: Tensor) -> Tensor:
    return 2 * (torch.sqrt(u) - 1) ** 2


def _hellinger_core(x: Tensor) -> Tensor:
    return 2 * x / (2 + x)


# Each margin solves phi'(x) = MAX_RATIO.
_kl_phi = _bounded(torch.log1p, 1 / MAX_RATIO - 1)
_lecam_phi = _bounded(_lecam_core, 8 / (MAX_RATIO + 1) ** 2 - 2)
_reverse_kl_phi = _bounded(_reverse_kl_core, -math.log(MAX_RATIO))
_js_phi = _bounded(_js_core, -math.log(2 * MAX_RATIO / (1 + MAX_RATIO)))
_hellinger_phi = _bounded(_hellinger_core, 2 / math.sqrt(MAX_RATIO) - 2)

DIVERGENCES: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in (
        Divergence("chi2", _chi2_f, _chi2_phi, plateau=2.0),
        # The paper's sampled form: half the penalty on the expert, half on rollouts. Its phi is not lecam's, whose f
        # it shares, as it holds the mixture (rho + rho_E) / 2 fixed while the policy moves.
        Divergence("chi2_mixture", _lecam_f, _chi2_mixture_phi, rollout_penalty=1 / 8),
        Divergence("lecam", _lecam_f, _lecam_phi, domain=-2.0, plateau=6.0),
        Divergence("kl", _kl_f, _kl_phi, domain=-1.0),
        Divergence("reverse_kl", _reverse_kl_f, _reverse_kl_phi),
        Divergence("js", _js_f, _js_phi, domain=-math.log(2)),
        Divergence("hellinger", _hellinger_f, _hellinger_phi, domain=-2.0),
    )
}
"""By name: `chi2` (Pearson), `chi2_mixture` (the paper's, with rollouts), `lecam` (the same divergence in closed form),
`kl` (forward, KL(rho_E, rho)), `reverse_kl`, `js` (Jensen-Shannon) and `hellinger`."""
