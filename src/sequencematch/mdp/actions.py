"""The actions of the token MDP: every vocabulary token appends, `<eos>` ends, deletion tokens take tokens back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..errors import InputError

ALL: Literal["all"] = "all"


@dataclass(frozen=True)
class Deletion:
    """A deletion action: emitting `token_id` removes the last `length` tokens of the completion.

    The paper's backspace is `Deletion(bksp_id, 1)`; a reset is `Deletion(reset_id, "all")`.
    """

    token_id: int
    """The vocabulary id that stands for this action."""
    length: int | Literal["all"] = 1
    """How many completion tokens it removes: a number of at least 1, or `"all"`."""

    def __post_init__(self) -> None:
        number = isinstance(self.length, int) and not isinstance(self.length, bool)
        if self.length != ALL and not (number and self.length >= 1):  # type: ignore[operator]
            raise InputError(f"a deletion's length must be a whole number of at least 1 or 'all', not {self.length!r}")

    @property
    def minimum_completion(self) -> int:
        """The shortest completion at which the action is legal (`all` needs one token to delete)."""
        return 1 if self.length == ALL else self.length

    def landing(self, completion_length: int) -> int:
        """The completion's length after the deletion."""
        return 0 if self.length == ALL else completion_length - self.length


@dataclass(frozen=True)
class ActionSpace:
    """What the policy can do: `vocab_size` actions, of which one ends and some delete (arXiv 2306.05426).

    A deletion is legal only when the completion is at least as long as what it deletes, so a prompt is never
    deleted. Everything else is legal in every state.
    """

    vocab_size: int
    """Number of actions: the rows of the model's output embedding."""
    eos_token_id: int
    """The action that leads to the absorbing state."""
    deletions: tuple[Deletion, ...] = ()
    """The deletion actions; empty for a model that cannot take tokens back."""

    def __post_init__(self) -> None:
        tokens = [deletion.token_id for deletion in self.deletions]
        for token in (self.eos_token_id, *tokens):
            if not 0 <= token < self.vocab_size:
                raise InputError(
                    f"token id {token} is out of range for a vocabulary of {self.vocab_size}; "
                    "resize the model's embeddings to the tokenizer (see add_backspace_token)"
                )
        if len({self.eos_token_id, *tokens}) != len(tokens) + 1:
            raise InputError("the eos token and every deletion action need token ids of their own")

    @cached_property
    def by_token(self) -> dict[int, Deletion]:
        """The deletion that each deletion token stands for."""
        return {deletion.token_id: deletion for deletion in self.deletions}

    def is_legal(self, action: int, completion_length: int) -> bool:
        """Whether `action` may be taken when the completion has `completion_length` tokens."""
        deletion = self.by_token.get(action)
        return deletion is None or completion_length >= deletion.minimum_completion

    def check_legal(self, action: int, completion_length: int, step: int) -> None:
        """Raise InputError if `action`, the trajectory's action number `step`, may not be taken."""
        if not self.is_legal(action, completion_length):
            raise InputError(
                f"action {step} (token {action}) deletes more than the {completion_length} completion tokens "
                "there are; a prompt is never deleted"
            )

    def next_length(self, action: int, completion_length: int) -> int:
        """The completion's length after `action` (`<eos>` counts as a token of the absorbing state's string)."""
        deletion = self.by_token.get(action)
        return completion_length + 1 if deletion is None else deletion.landing(completion_length)

    def plan_deletion(self, completion_length: int, target_length: int) -> tuple[list[int], int]:
        """The fewest deletion actions that lead from `completion_length` to `target_length` tokens.

        Returns the actions and the length they land on. Where the target cannot be met exactly (only `all`
        is available, say) the plan lands on 0, from where the expert starts again.

        Raises InputError if no deletion action leads back at all.
        """
        cost: dict[int, list[int]] = {completion_length: []}
        frontier = [completion_length]
        while frontier and target_length not in cost:
            reached = []
            for length in frontier:
                for deletion in self.deletions:
                    landing = deletion.landing(length)
                    if length >= deletion.minimum_completion and landing not in cost:
                        cost[landing] = [*cost[length], deletion.token_id]
                        reached.append(landing)
            frontier = reached
        for landing in (target_length, 0):
            if landing in cost:
                return cost[landing], landing
        raise InputError(
            f"no deletion action leads from {completion_length} completion tokens back to {target_length}; "
            "add a deletion of length 1 or 'all'"
        )

    def check_tokens(self, tokens: Sequence[int], what: str) -> None:
        """Raise InputError if any of `tokens` is not in the vocabulary."""
        if len(tokens) and not (min(tokens) >= 0 and max(tokens) < self.vocab_size):
            bad = next(token for token in tokens if not 0 <= token < self.vocab_size)
            raise InputError(
                f"token id {bad} in the {what} is out of range for a vocabulary of {self.vocab_size}; "
                "use the tokenizer that belongs to the model"
            )
