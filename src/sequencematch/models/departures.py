"""What the policy could delete where its rollouts have left the expert's way.

Shapes: n nodes, S steps, T trajectories, C deletions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..mdp import ActionSpace, Deletion
from ..objectives.steps import Steps
from ..tree import TreeBatch
from .candidates import evaluate_untaken


def evaluate_departures(
    model: Any, batch: TreeBatch, space: ActionSpace, terminal_value: str = "learned"
) -> tuple[Steps, Steps, Tensor]:
    """`evaluate_states`, and in the same forward pass every legal deletion in rollouts' states off the expert's way.

    Where a deletion leads is an ancestor, which the tree holds already: no trajectory needs to take it.

    Args:
        model: the causal language model, or the DDP or FSDP module around it; see `prepare_model`.
        batch: the trees and their walks, on the model's device. The weight of a policy's step is 1 where it is one of
            the `departures` from the expert's completion and 0 elsewhere.
        space: the action space that decides what is legal.
        terminal_value: see `evaluate_states`.

    Returns:
        the S steps of the batch as `evaluate_states` gives them; C more, each a deletion in a state that a step leaves;
        and bool [T], whether each trajectory is the policy's and ended off the way.
    """
    off = states_off_the_way(batch, space)
    step, action, landing = possible_deletions(batch, space, off)
    steps, deletions = evaluate_untaken(model, batch, space, terminal_value, step, action, landing)
    return steps, deletions, off[batch.final] & batch.is_policy


def states_off_the_way(batch: TreeBatch, space: ActionSpace) -> Tensor:
    """bool [n]: the nodes that rollouts reached by appending what the expert would not have."""
    appends = ~torch.isin(batch.action, _tokens(space, batch.action))
    strays = batch.is_policy[batch.trajectory] & appends & (batch.weight > 0)
    off = torch.zeros(len(batch.token), dtype=torch.bool, device=batch.token.device)
    off[batch.next[strays]] = True
    return off


def possible_deletions(batch: TreeBatch, space: ActionSpace, off: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every legal deletion at every rollout's step in a state where `off` (bool [n]) is true.

    Returns:
        int64 [C] each: the step, the deletion's token, and the node that it leads to.
    """
    step = (batch.is_policy[batch.trajectory] & off[batch.state]).nonzero()[:, 0]
    parent = parents(batch, space)
    found = []
    for deletion in space.deletions:
        legal = step[batch.completion_length[batch.state[step]] >= deletion.minimum_completion]
        landing = _ancestors(batch.state[legal], parent, batch.completion_length, deletion)
        found.append((legal, torch.full_like(legal, deletion.token_id), landing))
    return tuple(torch.cat(column) for column in zip(*found, strict=True)) if found else (step[:0],) * 3  # type: ignore[return-value]


def parents(batch: TreeBatch, space: ActionSpace) -> Tensor:
    """int64 [n]: the node that each completion's node was appended to; itself where no step appended it."""
    parent = torch.arange(len(batch.token), device=batch.token.device)
    appends = ~torch.isin(batch.action, _tokens(space, batch.action))
    parent[batch.next[appends]] = batch.state[appends]
    return parent


def _ancestors(nodes: Tensor, parent: Tensor, completion_length: Tensor, deletion: Deletion) -> Tensor:
    """Where `deletion` leads from each of `nodes`."""
    target: Any = deletion.landing(completion_length[nodes])  # type: ignore[arg-type]
    while bool((completion_length[nodes] > target).any()):
        nodes = torch.where(completion_length[nodes] > target, parent[nodes], nodes)
    return nodes


def _tokens(space: ActionSpace, like: Tensor) -> Tensor:
    return torch.tensor(list(space.by_token), dtype=like.dtype, device=like.device)
