"""A key-value cache whose rows can be rolled back one by one.

A row's string is a prefix of its slots: the token at position p has its keys and values in slot p. Deleting tokens
needs no work: the next token is written over the first deleted slot, and attention never looks past it. The tokens of
a forward pass come in one row, wherever they belong, so that strings of different lengths cost no padding.
Shapes: R rows, S slots of each, T new tokens, H attention heads, K key-value heads, D their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..models.attention import PlannedMask
from ..models.masks import additive, layer_masks


class _Cursor:
    """Where the tokens of the next forward go; shared by the layers of a cache."""

    rows: Tensor
    """int64 [T]."""
    slots: Tensor
    """int64 [T]."""
    used: int | None = None
    """Slots that attention looks at; None if the new tokens see each other only."""


class _SlotLayer(CacheLayerMixin):
    """The keys and values of one layer, float [R, K, S, D], written at the cursor's rows and slots."""

    def __init__(self, rows: int, capacity: int, cursor: _Cursor) -> None:
        super().__init__()
        self.rows = rows
        self.capacity = capacity
        self.cursor = cursor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not empty memory: a masked slot has weight zero, but zero times a stray NaN would be NaN.
        self.keys = self._zeros(key_states)
        self.values = self._zeros(value_states)
        self.is_initialized = True

    def _zeros(self, states: Tensor) -> Tensor:
        return states.new_zeros(self.rows, states.shape[1], self.capacity, states.shape[-1])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write float [1, K, T, D]; give back what attention looks at: these, or all rows' slots up to `used`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        rows, slots = (place.to(key_states.device) for place in (self.cursor.rows, self.cursor.slots))
        self.keys[rows, :, slots] = key_states[0].transpose(0, 1)
        self.values[rows, :, slots] = value_states[0].transpose(0, 1)
        if self.cursor.used is None:
            return key_states, value_states
        return self.keys[:, :, : self.cursor.used], self.values[:, :, : self.cursor.used]

    def keep(self, rows: Tensor) -> None:
        self.rows = len(rows)
        if self.keys is not None and self.values is not None:
            self.keys = self.keys[rows.to(self.keys.device)]
            self.values = self.values[rows.to(self.values.device)]

    def copy(self, source: int, targets: Tensor, length: int) -> None:
        if self.keys is not None and self.values is not None:
            self.keys[targets.to(self.keys.device), :, :length] = self.keys[source, :, :length]
            self.values[targets.to(self.values.device), :, :length] = self.values[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor.used or query_length, 0

    def get_seq_length(self) -> int:
        return (self.cursor.used or 0) if self.is_initialized else 0

    def get_max_length(self) -> int:
        return self.capacity


class SlotCache(Cache):
    """Preallocated slots: each row writes where it likes and sees exactly its own string.

    Before each forward `place` its tokens; then pass the model them as one row, `position_ids` equal to their slots,
    and `past_key_values=cache`. A token fed again at its own slot, after the same prefix, rewrites it with the same
    values. Memory is allocated at the first forward.
    """

    def __init__(self, config: Any, rows: int, capacity: int) -> None:
        """`config` is the model's; `rows` is R, and `capacity` S, the length of the longest string a row can hold."""
        self.config = config
        self.rows = rows
        self.capacity = capacity
        self.cursor = _Cursor()
        layers = config.get_text_config(decoder=True).num_hidden_layers
        self.slot_layers = [_SlotLayer(rows, capacity, self.cursor) for _ in range(layers)]
        super().__init__(layers=list(self.slot_layers))

    def place(self, rows: Tensor, slots: Tensor, used: int | None) -> None:
        """Say where the next forward's tokens go.

        Args:
            rows: int64 [T], the row of each token.
            slots: int64 [T], its slot, which is its position.
            used: None where the tokens see each other only (whole prompts); otherwise there is one token of each row,
                in order (T = R), and it sees its own row's slots up to its own, all of which are below `used`.
        """
        self.cursor.rows, self.cursor.slots, self.cursor.used = rows, slots, used

    def step_masks(self, dtype: torch.dtype) -> Any:
        """Who sees whom when each row is fed one token: slot q sees slot k where `k <= q` (and `k > q - window`).

        Returns:
            a mask for the model's layers, or a dict of one by layer type where they differ.
        """
        return layer_masks(self.config, lambda window: self._step_mask(dtype, window))

    def _step_mask(self, dtype: torch.dtype, window: int | None) -> StepMask:
        assert self.cursor.used is not None
        query = self.cursor.slots[:, None]
        key = torch.arange(self.cursor.used, device=query.device)
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        return StepMask(additive(seen, dtype)[:, None, None])

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these. rows: int64 [R'], indices of the rows that stay, in their new order."""
        self.rows = len(rows)
        for layer in self.slot_layers:
            layer.keep(rows)

    def copy(self, source: int, targets: Tensor, length: int) -> None:
        """Copy the first `length` slots of one row to others, int64 [n]."""
        for layer in self.slot_layers:
            layer.copy(source, targets, length)


class StepMask(PlannedMask):
    """One query of each row against the row's slots."""

    def __init__(self, seen: Tensor) -> None:
        """seen: float [R, 1, 1, slots], added to the scores."""
        super().__init__(len(seen))
        self.seen = seen

    def attend(
        self, own: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Tensor:
        """See `PlannedMask.attend`; key and value are float [R, K, slots, D]."""
        queries = query[0].transpose(0, 1)
        seen = self.seen.to(query)
        if own is not sdpa_attention_forward:
            return own(module, queries[:, :, None], key, value, seen, **kwargs)[0].transpose(0, 1)
        # Heads that share keys become queries of one head, so that the keys need not be repeated for each.
        grouped = queries.unflatten(1, (key.shape[1], -1))
        output = F.scaled_dot_product_attention(grouped, key, value, seen, scale=kwargs.get("scaling"))
        return output.flatten(1, 2)[None]
