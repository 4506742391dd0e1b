"""From a batch of state trees to soft values: one forward pass over every state at once.

Shapes: B rows of L nodes, V the vocabulary, S steps, T trajectories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace
from ..objectives.steps import Steps
from ..tree import TreeBatch, ancestor_mask
from .legality import mask_illegal
from .masks import layer_masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def tree_logits(model: torch.nn.Module, batch: TreeBatch, config) -> Tensor:
    """The language model's raw logits at every node, each seeing its ancestors only.

    Args:
        model: the causal language model, or the wrapper (DDP, FSDP) around it.
        batch: the trees.
        config: the model's own config, which names its attention layers.

    Returns:
        float [B, L, V]; row q of a tree equals the last position of a forward on the path from its root to q.
    """
    masks = attention_masks(config, batch.depth, batch.exit)
    output = model(input_ids=batch.token, attention_mask=masks, position_ids=batch.depth, use_cache=False)
    return output.logits


def attention_masks(config, depth: Tensor, exit: Tensor) -> Tensor | dict[str, Tensor]:
    """The ancestor mask as the model's layers want it: one tensor, or one by layer type where they differ.

    A sliding window is measured in depth, so a state sees the same context as in a sequence of its own.
    """
    return layer_masks(config, lambda window: ancestor_mask(depth, exit, window)[:, None])


def soft_values(logits: Tensor, batch: TreeBatch, space: ActionSpace) -> Tensor:
    """V(s) of every node: logsumexp over its legal actions. logits float [B, L, V] -> float [B, L]."""
    return mask_illegal(logits, batch.completion_length, space).logsumexp(-1)


def steps_of(logits: Tensor, batch: TreeBatch, space: ActionSpace, terminal_value: str = "learned") -> Steps:
    """Gather Q and V along the walks of a batch (arXiv 2306.05426: Q(s, a) is the logit, V its logsumexp).

    Args:
        logits: float [B, L, V], as `tree_logits` gives them.
        batch: the trees and their walks.
        space: the action space that decides what is legal.
        terminal_value: V(s_N), the value of the absorbing state: `learned` is the logsumexp at the `<eos>` node,
            `zero` is 0.

    Returns:
        the S steps of the batch's T trajectories, in float32 or the logits' own type if wider.
    """
    if terminal_value not in ("learned", "zero"):
        raise InputError(f"terminal_value is learned or zero, not {terminal_value!r}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    values = soft_values(logits, batch, space).flatten()
    if terminal_value == "zero":
        absorbing = torch.zeros_like(values, dtype=torch.bool)
        absorbing[batch.final[batch.terminated]] = True
        values = values.masked_fill(absorbing, 0.0)
    return Steps(
        q=logits.flatten(0, 1)[batch.state, batch.action],
        v=values[batch.state],
        v_next=values[batch.next],
        t=batch.t,
        weight=batch.weight,
        trajectory=batch.trajectory,
        length=batch.length,
        terminal_v=values[batch.final],
        terminated=batch.terminated,
    )


def evaluate_states(
    model: PreTrainedModel, batch: TreeBatch, space: ActionSpace, terminal_value: str = "learned"
) -> Steps:
    """`steps_of` after `tree_logits`: what most callers want."""
    return steps_of(tree_logits(model, batch, model.config), batch, space, terminal_value)
