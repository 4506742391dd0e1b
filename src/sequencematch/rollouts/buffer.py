"""A bounded store of the policy's recent trajectories, from which the policy half of a batch is drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..mdp import Trajectory


class ReplayBuffer:
    """Keeps up to `capacity` of the policy's trajectories, the freshest (paper, algorithm 1: the replay buffer).

    Stale trajectories are admissible: the telescoped objective holds for the trajectories of any policy; only what
    states they visit grows old. Sampling uses a generator of the buffer's own. Trajectories are immutable and shared.
    """

    def __init__(self, capacity: int, max_staleness: int | None = None, seed: int = 0) -> None:
        """Make an empty buffer.

        Args:
            capacity: the most trajectories held; beyond it the lowest `policy_version` goes, the oldest first.
            max_staleness: how many versions behind a trajectory may fall before `evict` drops it; no limit if None.
            seed: of the sampling.

        Raises InputError for a capacity below 1 or a negative staleness.
        """
        if capacity < 1:
            raise InputError(f"a replay buffer's capacity must be at least 1, not {capacity!r}")
        if max_staleness is not None and max_staleness < 0:
            raise InputError(f"max_staleness must be at least 0 (or None for no limit), not {max_staleness!r}")
        self.capacity = capacity
        self.max_staleness = max_staleness
        self._held: list[Trajectory] = []
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """The number of trajectories held."""
        return len(self._held)

    def extend(self, trajectories: Iterable[Trajectory]) -> None:
        """Add trajectories, then drop the stalest beyond capacity. Raises InputError for one that has no version."""
        new = list(trajectories)
        if any(trajectory.policy_version is None for trajectory in new):
            raise InputError("a replay buffer holds the policy's trajectories only, with their policy_version")
        self._held += new
        by_age = sorted(range(len(self)), key=lambda place: _version(self._held[place]))
        fresh = sorted(by_age[max(0, len(self) - self.capacity) :])
        self._held = [self._held[place] for place in fresh]

    def evict(self, current_version: int) -> int:
        """Drop what is more than `max_staleness` versions behind `current_version`; returns how many that were."""
        before = len(self)
        if self.max_staleness is not None:
            oldest = current_version - self.max_staleness
            self._held = [trajectory for trajectory in self._held if _version(trajectory) >= oldest]
        return before - len(self)

    def sample(self, n: int, by_prompt: bool = False) -> list[Trajectory]:
        """Draw n uniformly, without replacement; where n is more than are held, all of them and the rest with it.

        by_prompt: draw prompts, and with each all trajectories that it has: what shares a prompt shares its states on
        a tree, so such a batch costs less.

        Raises InputError if the buffer is empty or n is negative.
        """
        if n < 0:
            raise InputError(f"cannot sample {n} trajectories")
        if not self._held:
            raise InputError("the replay buffer is empty; roll out the policy before sampling from it")
        if by_prompt:
            groups: dict[bytes, list[int]] = {}
            for place, held in enumerate(self._held):
                groups.setdefault(held.prompt_ids.tobytes(), []).append(place)
            members = list(groups.values())
            first = np.array(
                [place for group in self._generator.permutation(len(members)) for place in members[group]]
            )[:n]
        else:
            first = self._generator.permutation(len(self))[:n]
        again = self._generator.integers(len(self), size=n - len(first))
        return [self._held[place] for place in (*first, *again)]

    def staleness(self, current_version: int) -> float:
        """How many versions behind `current_version` the trajectories are on average; 0 for an empty buffer."""
        return float(np.mean([current_version - _version(held) for held in self._held])) if self._held else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Contents and random state as tensors, lists, numbers and strings, fit for `torch.load(weights_only=True)`."""
        return {
            "prompt_ids": [torch.tensor(held.prompt_ids) for held in self._held],
            "actions": [torch.tensor(held.actions) for held in self._held],
            "action_weights": [torch.tensor(held.action_weights) for held in self._held],
            "terminated": [held.terminated for held in self._held],
            "policy_version": [_version(held) for held in self._held],
            # As text, because the generator's state holds integers of 128 bits.
            "generator": json.dumps(self._generator.bit_generator.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over contents and random state from `state_dict`; beyond this buffer's capacity the stalest go."""
        fields = ("prompt_ids", "actions", "action_weights", "terminated", "policy_version")
        self._held = []
        self.extend(
            Trajectory(
                prompt_ids=prompt_ids.numpy(),
                actions=actions.numpy(),
                action_weights=action_weights.numpy(),
                terminated=terminated,
                source="policy",
                policy_version=version,
            )
            for prompt_ids, actions, action_weights, terminated, version in zip(
                *(state[name] for name in fields), strict=True
            )
        )
        self._generator.bit_generator.state = json.loads(state["generator"])


def _version(trajectory: Trajectory) -> int:
    assert trajectory.policy_version is not None
    return trajectory.policy_version
