"""A trajectory: the actions taken from a prompt, as the expert showed them or the policy sampled them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..errors import InputError

Source = Literal["expert", "policy"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One walk through the token MDP (arXiv 2306.05426). Arrays are copied and made read-only.

    Raises InputError if the arrays disagree in length, a token id is negative, a weight is outside [0, 1],
    the prompt is empty, or a terminated trajectory has no action.
    """

    prompt_ids: np.ndarray
    """int64 [P], P >= 1: the tokens of the initial state, never deleted."""
    actions: np.ndarray
    """int64 [N]: token ids, deletion tokens included; the last one is `<eos>` if and only if `terminated`."""
    action_weights: np.ndarray = None  # type: ignore[assignment]
    """float64 [N] in [0, 1]: how much each action is imitated; ones if not given. Of the policy's actions none
    is: there they may say which ones are `departures` from the expert's way."""
    terminated: bool = True
    """True if it ends in the absorbing state, False if a length limit cut it."""
    source: Source = "expert"
    """Whose occupancy measure it samples: the expert's (noised or not) or the policy's."""
    policy_version: int | None = None
    """For the policy's trajectories, the optimizer step of the weights that sampled it."""

    def __post_init__(self) -> None:
        weights = np.ones(len(self.actions)) if self.action_weights is None else self.action_weights
        object.__setattr__(self, "prompt_ids", _frozen(self.prompt_ids, np.int64))
        object.__setattr__(self, "actions", _frozen(self.actions, np.int64))
        object.__setattr__(self, "action_weights", _frozen(weights, np.float64))
        if len(self.prompt_ids) == 0:
            raise InputError("a trajectory needs a prompt of at least one token (a beginning-of-text token will do)")
        if len(self.action_weights) != len(self.actions):
            raise InputError(f"{len(self.actions)} actions came with {len(self.action_weights)} weights; give one each")
        if min(self.prompt_ids.min(), self.actions.min(initial=0)) < 0:
            raise InputError("token ids must not be negative; mask nothing here, use action weights instead")
        if len(self.actions) and not (self.action_weights.min() >= 0 and self.action_weights.max() <= 1):
            raise InputError("action weights must lie between 0 and 1")
        if self.terminated and len(self.actions) == 0:
            raise InputError("a terminated trajectory needs at least the end-of-sequence action")
        if self.source not in get_args(Source):
            raise InputError(f"a trajectory's source is one of {get_args(Source)}, not {self.source!r}")
        if (self.source == "policy") != (self.policy_version is not None):
            raise InputError("policy_version goes with the policy's trajectories and only with them")

    def __len__(self) -> int:
        """The number of actions N."""
        return len(self.actions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        arrays = (self.prompt_ids, self.actions, self.action_weights)
        return (*(tuple(a.tolist()) for a in arrays), self.terminated, self.source, self.policy_version)


def _frozen(values: Sequence | np.ndarray, dtype: type) -> np.ndarray:
    array: np.ndarray = np.array(values, dtype=dtype)
    if array.ndim != 1:
        raise InputError(f"a trajectory's arrays have one dimension, not {array.ndim}")
    if dtype is np.int64 and not np.array_equal(array, values):
        raise InputError("token ids must be whole numbers")
    array.setflags(write=False)
    return array
