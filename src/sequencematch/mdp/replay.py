"""Replaying actions to states: the reference semantics of appending, deleting and ending."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputError
from .actions import ActionSpace
from .trajectory import Trajectory


@dataclass(frozen=True)
class Replay:
    """What a trajectory's actions lead to."""

    lengths: tuple[int, ...]
    """N + 1 completion lengths: before each action, and after the last."""
    completion: tuple[int, ...]
    """The surviving tokens, without `<eos>`: what the user reads."""


def states(trajectory: Trajectory, space: ActionSpace) -> Iterator[tuple[int, ...]]:
    """Yield the N + 1 states, each as the token string of prompt and completion so far.

    Raises InputError for an illegal action, a token outside the vocabulary, an action after `<eos>`, or a
    `terminated` that does not match how the actions end.
    """
    prompt = tuple(trajectory.prompt_ids.tolist())
    for completion in _completions(trajectory, space):
        yield prompt + tuple(completion)


def replay(trajectory: Trajectory, space: ActionSpace) -> Replay:
    """Replay a trajectory to its completion lengths and final text. Raises InputError as `states` does."""
    lengths = []
    completion: list[int] = []
    for completion in _completions(trajectory, space):
        lengths.append(len(completion))
    end = len(completion) - 1 if trajectory.terminated else len(completion)
    return Replay(tuple(lengths), tuple(completion[:end]))


def _completions(trajectory: Trajectory, space: ActionSpace) -> Iterator[list[int]]:
    """The completion before each action and after the last: one list, changed in place."""
    actions = trajectory.actions.tolist()
    check_actions(trajectory, space)
    completion: list[int] = []
    yield completion
    for step, action in enumerate(actions):
        space.check_legal(action, len(completion), step)
        after = space.next_length(action, len(completion))
        if after > len(completion):
            completion.append(action)
        else:
            del completion[after:]
        yield completion


def check_actions(trajectory: Trajectory, space: ActionSpace) -> None:
    """Raise InputError if a token is outside the vocabulary or `<eos>` is not where `terminated` says."""
    actions = trajectory.actions.tolist()
    space.check_tokens(trajectory.prompt_ids.tolist(), "prompt")
    space.check_tokens(actions, "actions")
    ends = [step for step, action in enumerate(actions) if action == space.eos_token_id]
    if trajectory.terminated and ends != [len(actions) - 1]:
        raise InputError("a terminated trajectory has the end-of-sequence token as its last action and nowhere else")
    if not trajectory.terminated and ends:
        raise InputError("a truncated trajectory has no end-of-sequence action; mark it terminated")
