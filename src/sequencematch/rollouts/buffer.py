"""A bounded store of the policy's recent trajectories, from which the policy half of a batch is drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..mdp import Trajectory


class ReplayBuffer:
    """Keeps up to `capacity` of the policy's trajectories, the freshest (paper, algorithm 1: the replay buffer).

    Stale trajectories are admissible: the telescoped objective holds for the trajectories of any policy; only what
    states they visit grows old. Trajectories are immutable and shared. Sampling uses a generator of the buffer's own,
    whose state is part of the buffer's: what is drawn depends on the seed and on the calls so far, and on nothing else.
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
        self._groups: list[list[Trajectory]] | None = None
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """The number of trajectories held."""
        return len(self._held)

    @property
    def contents(self) -> list[Trajectory]:
        """What is held, in the order that it came."""
        return list(self._held)

    def extend(self, trajectories: Iterable[Trajectory]) -> None:
        """Add trajectories, then drop the stalest beyond capacity. Raises InputError for one that has no version."""
        new = list(trajectories)
        if any(trajectory.policy_version is None for trajectory in new):
            raise InputError("a replay buffer holds the policy's trajectories only, with their policy_version")
        self._held += new
        by_age = sorted(range(len(self)), key=lambda place: _version(self._held[place]))
        fresh = sorted(by_age[max(0, len(self) - self.capacity) :])
        self._hold([self._held[place] for place in fresh])

    def evict(self, current_version: int) -> int:
        """Drop what is more than `max_staleness` versions behind `current_version`; returns how many that were."""
        before = len(self)
        if self.max_staleness is not None:
            oldest = current_version - self.max_staleness
            self._hold([trajectory for trajectory in self._held if _version(trajectory) >= oldest])
        return before - len(self)

    def sample(self, n: int) -> list[Trajectory]:
        """Draw prompts uniformly, without replacement, and with each all its trajectories, until there are n.

        What shares a prompt shares its states on a tree, so such a batch costs less. Of the last prompt's trajectories
        only as many as are wanted are drawn. Where n is more than are held, it is all of them, and the rest uniformly.

        Raises InputError if the buffer is empty or n is negative.
        """
        if n < 0:
            raise InputError(f"cannot sample {n} trajectories")
        if not self._held:
            raise InputError("the replay buffer is empty; roll out the policy before sampling from it")
        drawn = list(islice(self._by_prompt(n), n))
        again = self._generator.integers(len(self), size=n - len(drawn))
        return drawn + [self._held[place] for place in again]

    def _by_prompt(self, n: int) -> Iterator[Trajectory]:
        """The trajectories of one prompt after the other; those of the prompt that n cuts in random order."""
        if self._groups is None:
            groups: dict[bytes, list[Trajectory]] = {}
            for held in self._held:
                groups.setdefault(held.prompt_ids.tobytes(), []).append(held)
            self._groups = list(groups.values())
        for chosen in self._generator.permutation(len(self._groups)):
            group = self._groups[chosen]
            places = range(len(group)) if len(group) <= n else self._generator.permutation(len(group))
            yield from (group[place] for place in places)
            n -= len(group)

    def _hold(self, trajectories: list[Trajectory]) -> None:
        self._held = trajectories
        self._groups = None

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
        self._hold([])
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


def merged_state(states: Sequence[dict[str, Any]], generator: str) -> dict[str, Any]:
    """The `state_dict` of a buffer that takes over the contents of several, possibly none, in their order.

    Args:
        states: what `state_dict` returned of each.
        generator: its random state, as the `state_dict` of a buffer has it.
    """
    names = ReplayBuffer(1).state_dict().keys() - {"generator"}
    contents = {name: [held for state in states for held in state[name]] for name in names}
    return {**contents, "generator": generator}


def _version(trajectory: Trajectory) -> int:
    assert trajectory.policy_version is not None
    return trajectory.policy_version
