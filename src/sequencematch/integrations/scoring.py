"""How likely the policy is to write given texts without a deletion, many at a time. Shapes: M tokens, V actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory
from ..models import LogitTransform, evaluation_mode, head_logits, layout_of, mask_illegal
from ..models.prepare import run_tree
from ..tree import TreeBatch, collate_trajectories

DeletionMass = Literal["excluded", "included"]
HELD = 256
"""States whose logits are held at a time."""


@dataclass(frozen=True)
class Continuation:
    """A text to be scored after another."""

    context: list[int]
    """The tokens before it, at least one."""
    tokens: list[int]
    """Its own, at least one."""
    written: int = 0
    """How many of the context's last tokens belong to the completion already, which decides what may be deleted."""

    def __post_init__(self) -> None:
        if not self.context or not self.tokens:
            raise InputError("a continuation to score needs at least one token, after at least one token of context")


def score(
    model: Any, continuations: Sequence[Continuation], space: ActionSpace, deletion_mass: DeletionMass = "excluded"
) -> list[tuple[float, bool]]:
    """The log-probability of each continuation, and whether greedy decoding would write it, in one forward pass.

        excluded    sum over i of log [ pi(x_i | s_i) / (1 - pi(deletion | s_i)) ]
        included    sum over i of log pi(x_i | s_i)

    where s_i is the context and the continuation before x_i, and pi the softmax of the raw logits over legal actions.
    Both are the probability of writing just these tokens in a row: by a policy that must not delete, which is a number
    that models without deletions have as well, or by the policy as it is, whose other walks to the same text are not
    counted. Continuations of one context share its states. A deletion token within a continuation is no text: its
    probability is 0 if excluded.

    Args:
        model: the causal language model; see `prepare_model`.
        continuations: at least one.
        space: the action space that decides what is legal.
        deletion_mass: whether deletions have their share of the probability.

    Returns:
        for each continuation the sum of natural logarithms, and whether each of its tokens is the most probable action.

    Raises InputError for a model that cannot run state trees, or tokens out of vocabulary.
    """
    check_deletion_mass(deletion_mass)
    for continuation in continuations:
        space.check_tokens([*continuation.context, *continuation.tokens], "text to score")
    # Strings alone: none of their tokens ends the walk or deletes, so the end is an action that no text has.
    plain = ActionSpace(space.vocab_size + 1, space.vocab_size)
    batch = collate_trajectories([_string(each) for each in continuations], plain, layout_of(model)).to(model.device)
    nodes = _states(batch)
    lengths = torch.zeros_like(nodes)
    if deletion_mass == "included":
        written = np.repeat([each.written for each in continuations], [len(each.tokens) for each in continuations])
        lengths = batch.completion_length[nodes] + torch.from_numpy(written).to(nodes.device)
    tokens = torch.tensor([token for each in continuations for token in each.tokens], device=nodes.device)

    def read(head: nn.Module, hidden: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor]:
        parts = zip(nodes.split(HELD), lengths.split(HELD), tokens.split(HELD), strict=True)
        found = [
            _chosen(mask_illegal(head_logits(head, hidden[at], transform), length, space), token)
            for at, length, token in parts
        ]
        log_probs, best = zip(*found, strict=True)
        return torch.cat(log_probs), torch.cat(best)

    with torch.no_grad(), evaluation_mode(model):
        log_probs, best = run_tree(model, batch, read)
    sizes = [len(each.tokens) for each in continuations]
    per_text = zip(log_probs.cpu().double().split(sizes), best.cpu().split(sizes), strict=True)
    return [(float(of_tokens.sum()), bool(greedy.all())) for of_tokens, greedy in per_text]


def score_all(
    model: Any, continuations: Sequence[Continuation], space: ActionSpace, deletion_mass: DeletionMass, rows: int
) -> Iterator[dict[int, tuple[float, bool]]]:
    """`score` of any number of continuations, by their indices, a batch of so many `rows` at a time; see `batches`."""
    for indices in batches(continuations, rows):
        found = score(model, [continuations[index] for index in indices], space, deletion_mass)
        yield dict(zip(indices, found, strict=True))


def batches(continuations: Sequence[Continuation], rows: int) -> Iterator[list[int]]:
    """The indices of continuations in batches of at most so many rows, the longest contexts first.

    A row is a context and as many of its continuations as do not make it more than twice as long.
    """
    packed: list[list[int]] = []
    context: list[int] | None = None
    room = 0
    for index in sorted(range(len(continuations)), key=lambda i: _by_context(continuations[i])):
        each = continuations[index]
        room -= len(each.tokens)
        if each.context != context or room < 0:
            packed.append([])
            context, room = each.context, len(each.context) - len(each.tokens)
        packed[-1].append(index)
    for first in range(0, len(packed), rows):
        yield [index for row in packed[first : first + rows] for index in row]


def check_deletion_mass(deletion_mass: str) -> None:
    """Raise InputError unless it is one of the two."""
    if deletion_mass not in get_args(DeletionMass):
        raise InputError(f"deletion_mass is one of {get_args(DeletionMass)}, not {deletion_mass!r}")


def _by_context(continuation: Continuation) -> tuple[int, list[int]]:
    return -len(continuation.context), continuation.context


def _string(continuation: Continuation) -> Trajectory:
    """All of it but the last token, after which nothing is asked."""
    return Trajectory(np.array(continuation.context), np.array(continuation.tokens[:-1], dtype=int), terminated=False)


def _states(batch: TreeBatch) -> Tensor:
    """int64 [M]: the node before each token, continuation by continuation."""
    walks = zip(batch.state.split(batch.length.tolist()), batch.final.split(1), strict=True)
    return torch.cat([part for walk in walks for part in walk])


def _chosen(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probabilities of tokens [M] by logits [M, V], and whether each is the best of its row."""
    log_probs = logits.log_softmax(-1)
    return log_probs.gather(1, tokens[:, None])[:, 0], logits.argmax(-1) == tokens
