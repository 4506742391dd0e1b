"""What an objective sees of a batch: one row per action. S actions of T trajectories, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """Soft values along T trajectories of S actions in all. Everything is a tensor on one device."""

    q: Tensor
    """float [S]: Q(s_t, a_t), the raw logit of the action taken."""
    v: Tensor
    """float [S]: V(s_t), the logsumexp over the legal actions of s_t."""
    v_next: Tensor
    """float [S]: V(s_{t+1})."""
    t: Tensor
    """int64 [S]: the action's index within its trajectory, counting deletions."""
    weight: Tensor
    """float [S] in [0, 1]: how much the action is imitated."""
    trajectory: Tensor
    """int64 [S]: which trajectory (0 <= i < T) the action belongs to."""
    length: Tensor
    """int64 [T]: N, the number of actions of each trajectory."""
    terminal_v: Tensor
    """float [T]: V(s_N) at the absorbing state; not read where the trajectory is truncated."""
    terminated: Tensor
    """bool [T]: False where a length limit cut the trajectory, which then has no absorbing tail."""
    deletes: Tensor | None = None
    """float [S]: the probability that the policy deletes in s_t, to be logged: it carries no gradient."""

    def subset(self, chosen: Tensor) -> Steps:
        """The steps of the trajectories where `chosen` (bool [T]) is true, renumbered."""
        keep = chosen[self.trajectory]
        renumbered = torch.cumsum(chosen, 0) - 1
        return Steps(
            q=self.q[keep],
            v=self.v[keep],
            v_next=self.v_next[keep],
            t=self.t[keep],
            weight=self.weight[keep],
            trajectory=renumbered[self.trajectory[keep]],
            length=self.length[chosen],
            terminal_v=self.terminal_v[chosen],
            terminated=self.terminated[chosen],
            deletes=None if self.deletes is None else self.deletes[keep],
        )
