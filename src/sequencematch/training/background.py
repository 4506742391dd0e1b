"""Rollouts that run while training goes on: what one refresh asks for arrives at the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..mdp import Trajectory
from ..rollouts import ReplayBuffer

RollOut = Callable[[], Sequence[Trajectory]]


class Background:
    """One call at a time, in a thread of its own.

    Which rollouts arrive when does not depend on how fast anything is: each refresh waits for what the one before has
    asked for. So training is as reproducible as without, and rollouts are one refresh older.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._pending: Future[Sequence[Trajectory]] | None = None

    def take(self) -> Sequence[Trajectory] | None:
        """What was asked for last, waited for; None if nothing was. Raises what the call has raised."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def ask(self, roll_out: RollOut) -> None:
        """Start a call; the one before must have been taken."""
        assert self._pending is None
        self._pending = self._thread.submit(roll_out)

    def state_dict(self) -> dict[str, Any] | None:
        """What is under way, waited for, as a buffer's contents; it stays to be taken."""
        found = self.take()
        if found is None:
            return None
        self.ask(lambda: found)
        held = ReplayBuffer(max(len(found), 1))
        held.extend(found)
        return held.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from `state_dict`."""
        self.take()
        if state is not None:
            held = ReplayBuffer(max(len(state["terminated"]), 1))
            held.load_state_dict(state)
            self.ask(lambda: held.contents)
