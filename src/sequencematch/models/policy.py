"""From a batch of state trees to soft values: one forward pass over every state at once.

Shapes: n nodes, D hidden width, V vocabulary, S steps, T trajectories, M states that are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace
from ..objectives.steps import Steps
from ..tree import TreeBatch
from .head import head_logits, head_values
from .legality import mask_illegal
from .prepare import run_tree


def evaluate_states(model: Any, batch: TreeBatch, space: ActionSpace, terminal_value: str = "learned") -> Steps:
    """Q and V along the walks of a batch (arXiv 2306.05426: Q(s, a) is the logit, V its logsumexp).

    Only states that a step leaves or reaches are projected, and their logits are never held (see `head_values`).
    `steps_of(tree_logits(model, batch), ...)` is the obvious way to the same.

    Args:
        model: the causal language model, or the DDP or FSDP module around it; see `prepare_model`.
        batch: the trees and their walks, on the model's device.
        space: the action space that decides what is legal.
        terminal_value: V(s_N), the value of the absorbing state: `learned` is the logsumexp at the `<eos>` node,
            `zero` is 0.

    Returns:
        the S steps of the batch's T trajectories, in float32 or the hidden states' own type if wider.
    """
    _check_terminal_value(terminal_value)
    used = torch.zeros(len(batch.token), dtype=torch.bool, device=batch.token.device)
    for nodes in (batch.state, batch.next, batch.final):
        used[nodes] = True
    place = used.cumsum(0) - 1
    nodes = used.nonzero()[:, 0]
    # Beside the action taken, every deletion at the same state: their logits cost next to nothing here.
    actions = torch.cat([batch.action, *(torch.full_like(batch.action, token) for token in space.by_token)])
    states = place[batch.state].repeat(1 + len(space.deletions))

    def read(head: Any, hidden: Tensor, transform: Any) -> tuple[Tensor, Tensor]:
        return head_values(
            head, hidden.index_select(0, nodes), batch.completion_length[nodes], states, actions, space, transform
        )

    q, v = run_tree(model, batch, read)
    q, of_deletions = q[: len(batch.action)], q[len(batch.action) :].detach()
    of_deletions = of_deletions.view(len(space.deletions), len(batch.action))
    deletes = _deletes(of_deletions, v.detach()[place[batch.state]], batch, space)
    return _steps(q, v, place, batch, terminal_value, deletes)


def node_logits(model: Any, batch: TreeBatch, nodes: Tensor) -> Tensor:
    """The language model's raw logits at some nodes: int64 [M] -> float [M, V], each node seeing its ancestors only."""
    return run_tree(model, batch, lambda head, hidden, transform: head_logits(head, hidden[nodes], transform))


def tree_logits(model: Any, batch: TreeBatch) -> Tensor:
    """The language model's raw logits at every node, float [n, V], by the model's own head.

    Row q equals the last position of a forward on the path from its root to q.
    """
    return run_tree(model, batch, None)


def steps_of(logits: Tensor, batch: TreeBatch, space: ActionSpace, terminal_value: str = "learned") -> Steps:
    """`evaluate_states` by its definition, from the logits of all nodes, float [n, V]."""
    _check_terminal_value(terminal_value)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = mask_illegal(logits, batch.completion_length, space).logsumexp(-1)
    everything = torch.arange(len(values), device=values.device)
    of_deletions = logits[batch.state][:, list(space.by_token)].detach().t()
    deletes = _deletes(of_deletions, values[batch.state].detach(), batch, space)
    return _steps(logits[batch.state, batch.action], values, everything, batch, terminal_value, deletes)


def _deletes(logits: Tensor, values: Tensor, batch: TreeBatch, space: ActionSpace) -> Tensor:
    """The probability of deleting in each step's state, from the deletions' logits [k, S] and V [S]: float [S]."""
    legal = [batch.completion_length[batch.state] >= deletion.minimum_completion for deletion in space.deletions]
    probabilities = [
        torch.where(allowed, (logit - values).exp(), 0.0) for logit, allowed in zip(logits, legal, strict=True)
    ]
    return torch.stack([torch.zeros_like(values), *probabilities]).sum(0)


def _steps(q: Tensor, values: Tensor, place: Tensor, batch: TreeBatch, terminal_value: str, deletes: Tensor) -> Steps:
    """Gather values, float [M] of the states at `place` [n], along the walks."""
    if terminal_value == "zero":
        absorbing = torch.zeros_like(values, dtype=torch.bool)
        absorbing[place[batch.final[batch.terminated]]] = True
        values = values.masked_fill(absorbing, 0.0)
    return Steps(
        q=q,
        v=values[place[batch.state]],
        v_next=values[place[batch.next]],
        t=batch.t,
        weight=batch.weight,
        trajectory=batch.trajectory,
        length=batch.length,
        terminal_v=values[place[batch.final]],
        terminated=batch.terminated,
        deletes=deletes,
    )


def _check_terminal_value(terminal_value: str) -> None:
    if terminal_value not in ("learned", "zero"):
        raise InputError(f"terminal_value is learned or zero, not {terminal_value!r}")
