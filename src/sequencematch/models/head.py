"""Q and V from hidden states and the output embedding, without ever holding the logits [M, V].

Shapes: M states, D hidden width, V vocabulary, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..mdp import ActionSpace
from .legality import mask_illegal, shortest_completions
from .own_forward import is_plain_linear, runs_its_class, within
from .tiled_head import TiledHead, slices, tile_entries, wide_dtype
from .trained_rows import has_trained_rows, trained_rows_values


@dataclass(frozen=True)
class LogitTransform:
    """What a family does to the head's output: `softcap * tanh(scale * x / softcap)`, or just `scale * x`."""

    scale: float = 1.0
    """Multiplies the head's output (Cohere, Granite)."""
    softcap: float | None = None
    """Bounds the logits smoothly (Gemma); None for no bound."""

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read the transform from a model's config. Whether that is all a family does, `prepare_model` checks."""
        text = config.get_text_config(decoder=True)
        names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
        scale = next((found for name in names if (found := getattr(text, name, None)) is not None), None)
        if scale is None:
            scale = 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        return cls(float(scale), getattr(text, "final_logit_softcapping", None))

    def __call__(self, raw: Tensor) -> Tensor:
        """The logits, from the head's output."""
        scaled = self.scale * raw
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)

    def apply_(self, raw: Tensor) -> Tensor:
        """The same in place, where no gradient is recorded."""
        if self.scale != 1.0:
            raw.mul_(self.scale)
        if self.softcap is not None:
            raw.div_(self.softcap).tanh_().mul_(self.softcap)
        return raw

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of the logits with respect to the head's output."""
        if self.softcap is None:
            return self.scale
        # Illegal actions have logits of -inf; their gradient is zero, which times an infinite slope would be NaN.
        return self.scale * (1 - (logits / self.softcap).clamp(min=-1) ** 2)


def head_logits(head: nn.Module, hidden: Tensor, transform: LogitTransform) -> Tensor:
    """The model's raw logits, all of them, in float32 at least. hidden float [M, D] -> float [M, V]."""
    raw = head(hidden)
    return transform(raw.to(wide_dtype(raw.dtype)))


def head_values_reference(
    head: nn.Module,
    hidden: Tensor,
    completion_length: Tensor,
    row: Tensor,
    action: Tensor,
    space: ActionSpace,
    transform: LogitTransform,
) -> tuple[Tensor, Tensor]:
    """`head_values` by its definition, through the logits."""
    logits = head_logits(head, hidden, transform)
    return logits[row, action], mask_illegal(logits, completion_length, space).logsumexp(-1)


def head_values(
    head: nn.Module,
    hidden: Tensor,
    completion_length: Tensor,
    row: Tensor,
    action: Tensor,
    space: ActionSpace,
    transform: LogitTransform,
) -> tuple[Tensor, Tensor]:
    """Q of the actions taken and V of the states they were taken in, without ever holding the logits.

        Q(s, a) = l(a|s)        V(s) = logsumexp over legal a of l(a|s)

    A plain linear head, with or without rows of its own that peft trains, is computed in tiles of states by
    vocabulary, inside its own forward. Any other (LoRA on the head, a quantised one) is called as it is on a few
    states at a time, and again in the backward pass. Both give what `head_values_reference` gives, and its gradients
    to hidden, weight, bias and whatever else the head trains.

    Args:
        head: the output embedding, float [M, D] -> float [M, V].
        hidden: float [M, D], the states' last hidden states.
        completion_length: int64 [M], tokens of completion in each state, which decide what is legal.
        row: int64 [S], the row of `hidden` that each action was taken in.
        action: int64 [S].
        space: the action space; V is its `vocab_size`.
        transform: what the family does to the head's output.

    Returns:
        Q, float [S], and V, float [M]; float32, or float64 if the hidden states are.
    """
    if is_plain_linear(head):
        return within(
            head,
            hidden,
            lambda head, hidden: TiledHead.apply(
                hidden, head.weight, head.bias, completion_length, row, action, shortest_completions(space), transform
            ),
        )
    if has_trained_rows(head):
        return within(
            head,
            hidden,
            lambda head, hidden: trained_rows_values(
                head.token_adapter, hidden, completion_length, row, action, space, transform
            ),
        )
    copy = _trained_copy(head)
    if copy is not None:
        return within(
            head,
            hidden,
            lambda _, hidden: head_values(copy, hidden, completion_length, row, action, space, transform),
        )
    return _chunked_head(head, hidden, completion_length, row, action, space, transform)


def _trained_copy(head: Any) -> nn.Module | None:
    """The copy of the head that peft trains in its place (`modules_to_save`), if it does."""
    copies = getattr(head, "modules_to_save", None)
    if copies is None or head.disable_adapters or not runs_its_class(head):
        return None
    active = head.active_adapters
    return copies[active[0]] if len(active) == 1 and active[0] in copies else None


def _chunked_head(
    head: nn.Module,
    hidden: Tensor,
    completion_length: Tensor,
    row: Tensor,
    action: Tensor,
    space: ActionSpace,
    transform: LogitTransform,
) -> tuple[Tensor, Tensor]:
    """`head_values` through the head's own forward, on as many states at a time as a tile has logits for."""
    size = max(tile_entries(hidden.device) // space.vocab_size, 1)
    order = row.argsort(stable=True)
    chunks = list(slices(len(hidden), size))
    bounds = torch.tensor([chunk.stop for chunk in chunks[:-1]], device=row.device, dtype=row.dtype)
    steps_in = order.tensor_split(torch.searchsorted(row[order], bounds).cpu())
    parts = [
        checkpoint(
            head_values_reference,
            head,
            hidden[chunk],
            completion_length[chunk],
            row[steps] - chunk.start,
            action[steps],
            space,
            transform,
            use_reentrant=False,
        )
        for chunk, steps in zip(chunks, steps_in, strict=True)
    ]
    q, v = (torch.cat(values) for values in zip(*parts, strict=True))
    return q[order.argsort()], v
