"""Q and V of an output embedding of which adapters train some rows, and nothing else (peft's trainable tokens).

peft puts the trained rows into a copy of the whole matrix in every call. Here the frozen matrix is used as it is, with
those actions left out, and they are added from their own few rows.
Shapes: M states, D hidden width, V vocabulary, S steps.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..mdp import ActionSpace
from .legality import shortest_completions
from .own_forward import is_plain_linear, runs_its_class, within
from .tiled_head import TiledHead


def has_trained_rows(head: nn.Module) -> bool:
    """Whether a head is a plain matrix, some of whose rows one active adapter replaces by trained ones."""
    wrapper: Any = head
    adapter = getattr(head, "token_adapter", None)
    if adapter is None or wrapper.disable_adapters or adapter.disable_adapters or adapter.merged:
        return False
    active = adapter.active_adapters
    tokens = adapter.token_indices.get(active[0], []) if len(active) == 1 else []
    base = adapter.base_layer
    # peft leaves a bias out, and where a token comes up twice it leaves open which row counts.
    usable = is_plain_linear(base) and base.bias is None and runs_its_class(head) and runs_its_class(adapter)
    return usable and wrapper.active_adapters == active and 0 < len(tokens) == len(set(tokens)) < base.out_features


def trained_rows_values(
    adapter: Any,
    hidden: Tensor,
    completion_length: Tensor,
    row: Tensor,
    action: Tensor,
    space: ActionSpace,
    transform: Any,
) -> tuple[Tensor, Tensor]:
    """`head_values` of such a head, from its token adapter; gradients to hidden and to the trained rows.

    V(s) = log(exp V_frozen(s) + exp V_trained(s))
    """
    (name,) = adapter.active_adapters
    tokens = adapter.token_indices[name]
    shortest = shortest_completions(space)
    columns = {token: column for column, token in enumerate(tokens)}

    place = torch.full((space.vocab_size,), -1, device=action.device)
    place[torch.tensor(tokens, device=action.device)] = torch.arange(len(tokens), device=action.device)
    column = place[action]

    def of_the_rest(base: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        never = shortest | dict.fromkeys(tokens, sys.maxsize)
        return TiledHead.apply(hidden, base.weight, None, completion_length, row, action, never, transform)

    q_frozen, v_frozen = within(adapter.base_layer, hidden, of_the_rest)
    rows = adapter.trainable_tokens_delta[name].to(adapter.base_layer.weight.dtype)
    of_columns = {columns[token]: minimum for token, minimum in shortest.items() if token in columns}
    q_trained, v_trained = TiledHead.apply(
        hidden, rows, None, completion_length, row, column.clamp(min=0), of_columns, transform
    )
    return torch.where(column < 0, q_frozen, q_trained), torch.logaddexp(v_frozen, v_trained)
