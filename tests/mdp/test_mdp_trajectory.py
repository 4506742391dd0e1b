"""Trajectories validate themselves, keep their own arrays, and compare by value."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from sequencematch.errors import InputError
from sequencematch.mdp import Trajectory

POLICY = {"source": "policy", "policy_version": 3}
WRONG: dict[str, tuple[Callable[[], Trajectory], str]] = {
    "no prompt": (lambda: Trajectory([], [1]), "prompt of at least one token"),
    "too few weights": (lambda: Trajectory([1], [2, 3], [1.0]), "2 actions came with 1 weights"),
    "too many weights": (lambda: Trajectory([1], [2], [1.0, 1.0]), "1 actions came with 2 weights"),
    "negative prompt": (lambda: Trajectory([1, -1], [2]), "not be negative"),
    "negative action": (lambda: Trajectory([1], [2, -100]), "not be negative"),
    "weight above 1": (lambda: Trajectory([1], [2], [1.01]), "between 0 and 1"),
    "weight below 0": (lambda: Trajectory([1], [2], [-0.01]), "between 0 and 1"),
    "weight not a number": (lambda: Trajectory([1], [2, 3], [1.0, np.nan]), "between 0 and 1"),
    "terminated without action": (lambda: Trajectory([1], []), "end-of-sequence action"),
    "unknown source": (lambda: Trajectory([1], [2], source="oracle"), "oracle"),
    "policy without version": (lambda: Trajectory([1], [2], source="policy"), "policy_version"),
    "expert with version": (lambda: Trajectory([1], [2], policy_version=0), "policy_version"),
    "batch of prompts": (lambda: Trajectory([[1, 2]], [2]), "one dimension, not 2"),
    "batch of actions": (lambda: Trajectory([1], [[2], [3]]), "one dimension, not 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(name):
    make, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        make()


def test_accepts_the_extremes():
    assert len(Trajectory([0], [], terminated=False)) == 0
    assert len(Trajectory([0], [0], [0.0])) == 1
    assert Trajectory([0], [5, 0], **POLICY).policy_version == 3
    assert Trajectory([0], [5, 0], source="policy", policy_version=0).policy_version == 0


def test_types_and_default_weights():
    trajectory = Trajectory(np.array([1], np.int32), [2, 0])
    assert trajectory.prompt_ids.dtype == trajectory.actions.dtype == np.int64
    assert trajectory.action_weights.dtype == np.float64
    assert trajectory.action_weights.tolist() == [1.0, 1.0]
    assert trajectory.terminated
    assert trajectory.source == "expert"
    assert trajectory.policy_version is None


@pytest.mark.parametrize("name", ["prompt_ids", "actions", "action_weights"])
def test_copies_and_freezes_its_arrays(name):
    given = {
        "prompt_ids": np.array([1, 2], np.int64),
        "actions": np.array([3, 0], np.int64),
        "action_weights": np.array([0.5, 1.0], np.float64),
    }
    trajectory = Trajectory(**given)
    before = getattr(trajectory, name).tolist()
    given[name][0] = 1
    given[name][1] = 1
    assert getattr(trajectory, name).tolist() == before
    with pytest.raises(ValueError, match="read-only"):
        getattr(trajectory, name)[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(trajectory, name, np.array([1]))


def test_equal_by_value_and_hashable():
    one = Trajectory([1, 2], [3, 0], [0.5, 1.0])
    same = Trajectory(np.array([1, 2]), np.array([3, 0]), np.array([0.5, 1.0]))
    assert one == same
    assert hash(one) == hash(same)
    assert one != "a trajectory"
    others = [
        Trajectory([1, 3], [3, 0], [0.5, 1.0]),
        Trajectory([1], [2, 3, 0], [1.0, 0.5, 1.0]),
        Trajectory([1, 2], [4, 0], [0.5, 1.0]),
        Trajectory([1, 2], [3, 0]),
        Trajectory([1, 2], [3, 0], [0.5, 1.0], terminated=False),
        Trajectory([1, 2], [3, 0], [0.5, 1.0], **POLICY),
        Trajectory([1, 2], [3, 0], [0.5, 1.0], source="policy", policy_version=4),
    ]
    assert len({one, same, *others}) == 1 + len(others)
