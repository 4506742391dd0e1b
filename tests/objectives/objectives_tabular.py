"""A token MDP small enough to enumerate, with exact occupancies, and the two sides of the duality on it.

Shape legend: n states without the absorbing one, A actions, K legal (state, action) pairs. Occupancies are
unnormalised, `d = rho / (1 - gamma)`: the expected number of discounted visits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from sequencematch.mdp import ActionSpace, Deletion, Trajectory, states
from sequencematch.objectives import Divergence, Steps

GAMMA = 0.9
PROMPT = (0,)
A, B, EOS, DELETE = range(4)


@dataclass(frozen=True)
class Occupancy:
    pairs: Tensor  # float64 [K]
    absorbing: Tensor  # float64 []


class TabularMDP:
    def __init__(self, length, depth=3):
        self.space = ActionSpace(4, EOS, (Deletion(DELETE, length),))
        strings = [s for n in range(depth + 1) for s in product((A, B), repeat=n)]
        self.index = {PROMPT + s: i for i, s in enumerate(strings)}
        self.n = len(strings)
        pairs = []
        for s in strings:
            for action in range(4):
                if self.space.is_legal(action, len(s)) and not (action in (A, B) and len(s) == depth):
                    pairs.append((self.index[PROMPT + s], action, self._next(s, action)))
        self.state, self.action, self.next = torch.tensor(pairs).T

    def _next(self, string, action):
        if action == EOS:
            return self.n
        after = self.space.next_length(action, len(string))
        return self.index[PROMPT + (*string, action)[:after]]

    def q_table(self, q: Tensor) -> Tensor:
        """[K] -> [n, A], -inf where illegal."""
        return torch.full((self.n, 4), -torch.inf, dtype=q.dtype).index_put((self.state, self.action), q)

    def values(self, q: Tensor, absorbing: Tensor) -> Tensor:
        """V of every state, the absorbing one last: [n + 1]."""
        return torch.cat([self.q_table(q).logsumexp(-1), absorbing.reshape(1)])

    def log_policy(self, logits: Tensor) -> Tensor:
        """[K]: log softmax over the legal actions of each state."""
        return logits - self.q_table(logits).logsumexp(-1)[self.state]

    def occupancy(self, logits: Tensor) -> Occupancy:
        """Exact, by a linear solve of the Bellman flow."""
        pi = self.log_policy(logits).exp()
        inside = self.next < self.n
        flow = torch.zeros(self.n, self.n, dtype=pi.dtype)
        flow = flow.index_put((self.next[inside], self.state[inside]), pi[inside], accumulate=True)
        start = torch.zeros(self.n, dtype=pi.dtype)
        start[0] = 1
        visits = torch.linalg.solve(torch.eye(self.n, dtype=pi.dtype) - GAMMA * flow, start)
        pairs = visits[self.state] * pi
        return Occupancy(pairs, 1 / (1 - GAMMA) - pairs.sum())

    def primal(self, logits: Tensor, expert: Occupancy, divergence: Divergence, alpha: float) -> Tensor:
        """D / alpha - H of the policy that has these logits."""
        rho = self.occupancy(logits)
        spread = (expert.pairs * divergence.f(rho.pairs / expert.pairs)).sum()
        spread = spread + expert.absorbing * divergence.f(rho.absorbing / expert.absorbing)
        return spread / alpha + (rho.pairs * self.log_policy(logits)).sum()

    def rewards(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x = (Q [K], V(s_N)): the reward of every pair, that of the absorbing state, and V(s_0)."""
        v = self.values(x[:-1], x[-1])
        return x[:-1] - GAMMA * v[self.next], (1 - GAMMA) * x[-1], v[0]

    def dual(self, x: Tensor, expert: Occupancy, divergence: Divergence, alpha: float) -> Tensor:
        """J of x = (Q [K], V(s_N)) in exact expectation."""
        reward, last, initial = self.rewards(x)
        matched = (expert.pairs * divergence.phi_alpha(reward, alpha)).sum()
        return matched + expert.absorbing * divergence.phi_alpha(last, alpha) - initial

    def random_logits(self, seed: int, scale: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(len(self.state), dtype=torch.float64, generator=generator)

    def sample(self, logits: Tensor, count: int, seed: int, limit: int = 10_000) -> list[Trajectory]:
        """Trajectories of the policy, cut after `limit` actions."""
        rng = np.random.default_rng(seed)
        table = self.q_table(logits).softmax(-1).numpy()
        following = {(s, a): n for s, a, n in torch.stack([self.state, self.action, self.next], 1).tolist()}
        found = []
        for _ in range(count):
            actions, state = [], 0
            while state != self.n and len(actions) < limit:
                actions.append(int(rng.choice(4, p=table[state])))
                state = following[state, actions[-1]]
            found.append(Trajectory(PROMPT, actions, terminated=state == self.n))
        return found


def walks(mdp: TabularMDP, trajectories: list[Trajectory]):
    """A function of x = (Q [K], V(s_N)) to the Steps of these trajectories, replayed by `sequencematch.mdp`."""
    rows = []
    for i, trajectory in enumerate(trajectories):
        visited = [mdp.index.get(s, mdp.n) for s in states(trajectory, mdp.space)]
        weights = trajectory.action_weights.tolist()
        for t, action in enumerate(trajectory.actions.tolist()):
            rows.append((visited[t], action, visited[t + 1], t, i, weights[t]))
    state, action, after, t, owner = torch.tensor([r[:5] for r in rows], dtype=torch.long).reshape(-1, 5).T
    weight = torch.tensor([r[5] for r in rows], dtype=torch.float64)
    length = torch.tensor([len(x) for x in trajectories])
    terminated = torch.tensor([x.terminated for x in trajectories])

    def steps(x: Tensor) -> Steps:
        v = mdp.values(x[:-1], x[-1])
        q = mdp.q_table(x[:-1])[state, action]
        return Steps(q, v[state], v[after], t, weight, owner, length, x[-1].expand(len(length)), terminated)

    return steps


def minimum(function, start: Tensor) -> tuple[float, Tensor]:
    """The minimum of a smooth function of a float64 vector, by L-BFGS."""

    def value_and_gradient(x):
        point = torch.tensor(x, requires_grad=True)
        value = function(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    options = {"maxiter": 20_000, "maxfun": 20_000, "maxcor": 50, "ftol": 0.0, "gtol": 1e-10}
    found = minimize(value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return float(found.fun), torch.tensor(found.x)
