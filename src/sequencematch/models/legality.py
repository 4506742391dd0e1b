"""Which actions are legal where, as a mask on logits. Shapes: `...` any batch, V the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..mdp import ActionSpace


def mask_illegal(logits: Tensor, completion_length: Tensor, space: ActionSpace) -> Tensor:
    """Give illegal deletions probability zero: `l(a|s) = -inf` where the completion is too short for `a`.

    Args:
        logits: float [..., V], the language model's raw logits, which are the soft Q values Q(s, a).
        completion_length: int [...], tokens of completion in each state.
        space: the action space; V must be its `vocab_size`.

    Returns:
        float [..., V]; `softmax` of it is the policy and `logsumexp` of it the soft value V(s).
    """
    for deletion in space.deletions:
        illegal = completion_length < deletion.minimum_completion
        column = torch.arange(logits.shape[-1], device=logits.device) == deletion.token_id
        logits = logits.masked_fill(illegal.unsqueeze(-1) & column, -torch.inf)
    return logits


def mask_illegal_in_tile_(tile: Tensor, first: int, completion_length: Tensor, space: ActionSpace) -> None:
    """`mask_illegal` in place, on the columns `first, first + 1, ...` of the vocabulary.

    Args:
        tile: float [M, C], logits of C actions.
        first: the action of the first column.
        completion_length: int [M].
        space: the action space.
    """
    mask_short_in_tile_(tile, first, completion_length, shortest_completions(space))


def shortest_completions(space: ActionSpace) -> dict[int, int]:
    """The shortest completion at which an action is legal, for each that is not legal everywhere."""
    return {deletion.token_id: deletion.minimum_completion for deletion in space.deletions}


def mask_short_in_tile_(tile: Tensor, first: int, completion_length: Tensor, shortest: Mapping[int, int]) -> None:
    """`mask_illegal_in_tile_` by the shortest completion at which each action of `shortest` is legal."""
    for action, minimum in shortest.items():
        column = action - first
        if 0 <= column < tile.shape[1]:
            tile[:, column].masked_fill_(completion_length < minimum, -torch.inf)
