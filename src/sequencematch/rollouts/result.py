"""What sampling gives, and the interface between those who sample and those who need completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ..mdp import ActionSpace, Trajectory
from .sampling import SamplingConfig

FinishReason = Literal["eos", "stop", "max_completion_length", "max_actions", "no_legal_action", "interrupted"]


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled walk through the token MDP, and how likely the policy found each step. Shapes: N actions."""

    trajectory: Trajectory
    """What was done; its source is `policy`, and it is terminated if and only if it ends in `<eos>`."""
    log_probs: np.ndarray
    """float64 [N]: log pi(a_t|s_t), pi the softmax of the model's raw logits over legal actions. This is the policy's
    own probability at temperature 1, whatever bias, barring, temperature or filter the action was drawn with."""
    completion: tuple[int, ...]
    """The surviving tokens, without `<eos>`."""
    finish_reason: FinishReason
    """`eos`; or why it was cut: a stop string or token, it would have appended past the length limit, its actions were
    used up, every action left had probability zero, or the user interrupted."""


ENGINES = ("hf", "vllm")
"""Names of the engines: this library's own, and vLLM."""


class RolloutEngine(Protocol):
    """Anything that samples trajectories: the interface between training or evaluation and generation."""

    space: ActionSpace
    """The actions of the policy that it samples."""

    def rollout(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, policy_version: int = 0
    ) -> list[Rollout]:
        """Sample one completion per prompt.

        Every rollout ends, whatever the model does. The noise of a rollout depends on `config.seed` and the
        prompt's index alone, so other prompts change it by rounding at most. Interrupted (Ctrl-C), it returns what
        it has: rollouts under way are cut there (`interrupted`); see `uninterrupted`.

        Args:
            prompts: token ids, each of at least one; repeat a prompt to sample it several times.
            config: how to sample.
            policy_version: the optimizer step of the weights, kept with the trajectories.

        Returns:
            one rollout per prompt, in order; an empty list for no prompts.

        Raises InputError for an empty prompt, one with tokens out of range, or one too long for the model.
        """
        ...

    def update(self, policy_version: int) -> None:
        """The policy has changed: sample from now on with its weights as they are, those of optimizer step
        `policy_version`. In training, all ranks call it together, with whole weights."""
        ...


def uninterrupted(rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts, for callers who must not go on without all of them: KeyboardInterrupt if any was cut by one."""
    if any(rollout.finish_reason == "interrupted" for rollout in rollouts):
        raise KeyboardInterrupt
    return rollouts
