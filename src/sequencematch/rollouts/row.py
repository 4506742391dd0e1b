"""One rollout under way: its string, what was drawn at each state on the way to it, and what may be done next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..mdp import ActionSpace, Trajectory
from .events import Append, Delete, Event
from .result import FinishReason, Rollout
from .sampling import SamplingConfig

UNIFORMS = 256
"""Random numbers that a row takes from its generator at a time."""
NOTHING: frozenset[int] = frozenset()


@dataclass(slots=True)
class Draws:
    """What was drawn at one state and not used yet. A walk that comes back goes on with it: nothing is run again."""

    actions: list[int]
    """To be taken in turn; -1 where no action is possible."""
    log_probs: list[float]
    """log pi of each."""
    condition: tuple[bool, int]
    """Under what the distribution was made; see `Row.condition`."""
    state: Any = None
    """Of the logits processors, after this state."""
    used: int = 0


class Row:
    """A rollout under way: at the state whose draws are the last of `draws`, or else at one that is to be drawn."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        noise: np.random.Generator,
        space: ActionSpace,
        config: SamplingConfig,
        padding: Sequence[int] = (),
    ) -> None:
        """Start at the prompt. padding: what stands before the string for logits processors and stopping criteria."""
        self.index = index
        self.prompt = prompt
        self._before = [*padding, *prompt]
        self.space = space
        self.config = config
        self.completion: list[int] = []
        self.actions: list[int] = []
        self.log_probs: list[float] = []
        self.deletions = 0
        self.draws: list[Draws] = []
        self.barred: dict[tuple[int, ...], set[int]] = {}
        self.finish_reason: FinishReason | None = None
        self._noise = noise
        self._uniforms = np.empty(0)
        self._stop = frozenset(config.stop_token_ids)

    @property
    def last_token(self) -> int:
        """The last token of the string."""
        return self.completion[-1] if self.completion else self.prompt[-1]

    @property
    def slot(self) -> int:
        """Its position."""
        return len(self.prompt) + len(self.completion) - 1

    @property
    def context(self) -> list[int]:
        """The whole string, as logits processors and stopping criteria see it."""
        return self._before + self.completion

    @property
    def barred_here(self) -> set[int] | frozenset[int]:
        """What `exclude` bars at this string."""
        return self.barred.get(tuple(self.completion), NOTHING) if self.barred else NOTHING

    @property
    def condition(self) -> tuple[bool, int]:
        """What the distribution at a string depends on besides it: draws made under another condition are void.

        What is barred is passed over among independent draws, or in an order of preference, which is the same as
        drawing without it; but not where a filter has first looked at the whole distribution.
        """
        spent = self.config.max_deletions is not None and self.deletions >= self.config.max_deletions
        matters = self.config.filters and not self.config.greedy
        return spent, len(self.barred_here) if matters else 0

    def uniforms(self, count: int) -> np.ndarray:
        """The next random numbers of this row, float64 [count]."""
        if len(self._uniforms) < count:
            self._uniforms = np.concatenate([self._uniforms, self._noise.random(UNIFORMS)])
        taken, self._uniforms = self._uniforms[:count], self._uniforms[count:]
        return taken

    def seed(self) -> int:
        """A number for somebody else's noise, another one each time."""
        return int(self._noise.integers(2**63))

    def advance(self, events: list[Event] | None) -> Literal["feed", "draw", "done"]:
        """Take actions until one appends (`feed`: its token must be fed), the rollout ends, or draws run out (`draw`).

        events: what happens is added to it, if given.
        """
        while True:
            draws = self.draws[len(self.completion)]
            action, log_prob = self._next(draws)
            if action is None:
                del self.draws[-1]
                return "draw"
            if action < 0:
                self.finish_reason = "no_legal_action"
                return "done"
            before = len(self.completion)
            if not self.take(action, log_prob):
                return "done"
            if events is not None and action != self.space.eos_token_id:
                events.append(self.event(action, before))
            if self.finish_reason is not None:
                return "done"
            if len(self.completion) > before:
                return "feed"

    def _next(self, draws: Draws) -> tuple[int | None, float]:
        """The next of a state's draws that may be taken; None if there is none left."""
        if draws.condition != self.condition:
            return None, 0.0
        if self.config.greedy and self.config.retry == "resample":
            return draws.actions[0], draws.log_probs[0]  # the best action is so each time
        barred = self.barred_here
        while draws.used < len(draws.actions):
            at = draws.used
            draws.used += 1
            if draws.actions[at] not in barred:
                return draws.actions[at], draws.log_probs[at]
        return None, 0.0

    def take(self, action: int, log_prob: float) -> bool:
        """Move to the next state; False if the action would append past the length limit and is not taken."""
        deletion = self.space.by_token.get(action)
        if action == self.space.eos_token_id:
            self.finish_reason = "eos"
        elif deletion is not None:
            landing = deletion.landing(len(self.completion))
            if self.config.retry == "exclude":
                self.barred.setdefault(tuple(self.completion[:landing]), set()).add(self.completion[landing])
            del self.completion[landing:]
            del self.draws[landing + 1 :]
            self.deletions += 1
        elif len(self.completion) == self.config.max_completion_length:
            self.finish_reason = "max_completion_length"
            return False
        else:
            self.completion.append(action)
            if action in self._stop:
                self.finish_reason = "stop"
        self.actions.append(action)
        self.log_probs.append(log_prob)
        if self.finish_reason is None and len(self.actions) == self.config.action_limit:
            self.finish_reason = "max_actions"
        return True

    def event(self, action: int, before: int) -> Event:
        """What an action, now taken, has done to a completion of `before` tokens."""
        gone = before - len(self.completion)
        return Delete(self.index, action, gone) if gone >= 0 else Append(self.index, action)

    def result(self, policy_version: int) -> Rollout:
        """The rollout, as far as it came."""
        trajectory = Trajectory(
            prompt_ids=np.array(self.prompt),
            actions=np.array(self.actions, dtype=np.int64),
            terminated=self.finish_reason == "eos",
            source="policy",
            policy_version=policy_version,
        )
        log_probs = np.array(self.log_probs, dtype=np.float64)
        log_probs.setflags(write=False)
        return Rollout(trajectory, log_probs, tuple(self.completion), self.finish_reason or "interrupted")


def noise_of(seed: int | Sequence[int], index: int | None = None) -> np.random.Generator:
    """The random numbers of one row: of a seed of its own, or of a shared seed and its index."""
    spawn_key = () if index is None else (index,)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=spawn_key)))
