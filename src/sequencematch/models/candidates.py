"""What the policy gives to tokens that its context holds already: the negative candidates of unlikelihood training.

Shapes: n nodes, S steps, C candidates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..mdp import ActionSpace
from ..objectives.steps import Steps
from ..tree import TreeBatch
from .policy import evaluate_states
from .tiled_head import slices

PAIRS = 1 << 22
"""Pairs of a state and a node that are looked at together."""


def evaluate_candidates(
    model: Any, batch: TreeBatch, space: ActionSpace, terminal_value: str = "learned"
) -> tuple[Steps, Steps]:
    """`evaluate_states`, and in the same forward pass the same for every negative candidate of every step.

    A candidate is an action that was not taken, so it costs no more than a gathered logit, and no row of logits is held
    for it.

    Args:
        model: the causal language model, or the DDP or FSDP module around it; see `prepare_model`.
        batch: the trees and their walks, on the model's device.
        space: the action space that decides what is legal.
        terminal_value: see `evaluate_states`.

    Returns:
        the S steps of the batch as `evaluate_states` gives them, and C more, the candidates in the order of
        `context_candidates`: `q` and `v` say how likely each is, and time, weight and trajectory are those of its step.
        A candidate leads nowhere: its `v_next` is its `v`.
    """
    step, token = context_candidates(batch, space)
    return evaluate_untaken(model, batch, space, terminal_value, step, token, batch.state[step])


def evaluate_untaken(
    model: Any, batch: TreeBatch, space: ActionSpace, terminal_value: str, step: Tensor, action: Tensor, next: Tensor
) -> tuple[Steps, Steps]:
    """`evaluate_states`, and in the same forward pass the same for C actions that were not taken.

    Args:
        model, batch, space, terminal_value: see `evaluate_states`.
        step: int64 [C], at whose state each action could have been taken; time, weight and trajectory are those of it.
        action: int64 [C], the actions.
        next: int64 [C], the nodes that they lead to.
    """
    added = {"state": batch.state[step], "action": action, "next": next}
    added |= {name: getattr(batch, name)[step] for name in ("t", "weight", "trajectory")}
    extended: dict[str, Any] = {name: torch.cat([getattr(batch, name), values]) for name, values in added.items()}
    both = evaluate_states(model, replace(batch, **extended), space, terminal_value)
    taken = len(batch.action)
    return _rows(both, slice(taken)), _rows(both, slice(taken, None))


def context_candidates(batch: TreeBatch, space: ActionSpace) -> tuple[Tensor, Tensor]:
    """The negative candidates of each step: the tokens of its state, prompt and completion, but not the action taken.

        C_t = {x_1, ..., x_{t-1}} minus {x_t}        (the previous context candidates of arXiv 1908.04319)

    `<eos>` and deletions are no tokens of a text, and never candidates. Many models begin a text with `<eos>`, and to
    penalise it there would keep them from ending.

    Args:
        batch: the trees and their walks.
        space: says which tokens end and delete.

    Returns:
        int64 [C] and int64 [C]: the step of each candidate, ascending, and the candidate itself.
    """
    node = torch.arange(len(batch.token), device=batch.token.device)
    root = torch.where(batch.depth == 0, node, 0).cummax(0).values
    # An ancestor is no further back than the root, so trees are looked at one by one, whatever else is in the row.
    back = torch.arange(int((node - root).max()) + 1, device=node.device)
    codes = []
    for chunk in slices(len(batch.state), max(PAIRS // len(back), 1)):
        state = batch.state[chunk, None]
        before = state - back
        row, column = ((before >= root[state]) & (state < batch.exit[before.clamp(min=0)])).nonzero(as_tuple=True)
        codes.append(((row + chunk.start) * space.vocab_size + batch.token[before[row, column]]).unique())
    code = torch.cat([*codes, node[:0]])
    step, token = code // space.vocab_size, code % space.vocab_size
    never = torch.tensor([space.eos_token_id, *space.by_token], device=token.device)
    kept = (token != batch.action[step]) & ~torch.isin(token, never)
    return step[kept], token[kept]


def _rows(steps: Steps, rows: slice) -> Steps:
    """Some actions of the same trajectories."""
    names = ("q", "v", "v_next", "t", "weight", "trajectory", "deletes")
    return replace(steps, **{name: getattr(steps, name)[rows] for name in names})
