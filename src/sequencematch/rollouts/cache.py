"""A key-value cache whose rows can be rolled back one by one.

A row's string is a prefix of its slots: the token at position p has its keys and values in slot p. Deleting tokens
needs no work: the next token is written over the first deleted slot, and attention never looks past it.
Shapes: R rows, Q new tokens a row, S slots, H key-value heads, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ..models.masks import dense_mask, layer_masks


class _Cursor:
    """Where the tokens of the next forward go; shared by the layers of a cache."""

    slots: Tensor
    """int64 [R, Q]."""
    used: int = 0
    """One past the highest slot among them: no row attends beyond it."""


class _SlotLayer(CacheLayerMixin):
    """The keys and values of one layer, float [R, H, S, D], written at the cursor's slots."""

    def __init__(self, capacity: int, cursor: _Cursor) -> None:
        super().__init__()
        self.capacity = capacity
        self.cursor = cursor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads = key_states.shape[:2]
        # Zeros, not empty memory: a masked slot has weight zero, but zero times a stray NaN would be NaN.
        self.keys = key_states.new_zeros(rows, heads, self.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        slots = self.cursor.slots.to(key_states.device)
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        self.keys[rows, :, slots] = key_states.transpose(1, 2)
        self.values[rows, :, slots] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.cursor.used], self.values[:, :, : self.cursor.used]

    def keep(self, rows: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys = self.keys[rows.to(self.keys.device)]
            self.values = self.values[rows.to(self.values.device)]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor.used, 0

    def get_seq_length(self) -> int:
        return self.cursor.used if self.is_initialized else 0

    def get_max_length(self) -> int:
        return self.capacity


class SlotCache(Cache):
    """A cache over preallocated slots: each row writes where it likes and sees exactly its own string.

    Before each forward call `place` with the slots (= positions) of the tokens to feed, and pass the model
    `position_ids=slots`, `attention_mask=cache.attention_mask()` and `past_key_values=cache`. A token fed again at
    its own slot, after the same prefix, rewrites it with the same values. Memory is allocated at the first forward.
    """

    def __init__(self, config, capacity: int) -> None:
        """`config` is the model's; `capacity` is S, the length of the longest string it can hold."""
        self.config = config
        layers = config.get_text_config(decoder=True).num_hidden_layers
        self.cursor = _Cursor()
        self.slot_layers = [_SlotLayer(capacity, self.cursor) for _ in range(layers)]
        super().__init__(layers=list(self.slot_layers))

    def place(self, slots: Tensor) -> None:
        """Say where the next forward's tokens go. slots: int64 [R, Q], each row's own."""
        self.cursor.slots = slots
        self.cursor.used = int(slots.max()) + 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these. rows: int64 [R'], indices of the rows that stay, in their new order."""
        for layer in self.slot_layers:
            layer.keep(rows)

    def attention_mask(self) -> Tensor | dict[str, Tensor]:
        """Who sees whom in the next forward: slot q sees slot k where `k <= q` (and `k > q - window`).

        Returns:
            bool [R, 1, Q, used], or the additive equivalent for eager attention (which would add a boolean mask as
            0 and 1); where the model's layers differ, a dict of one mask per layer type.
        """
        return layer_masks(self.config, self._mask)

    def _mask(self, window: int | None) -> Tensor:
        query = self.cursor.slots[:, None, :, None]
        key = torch.arange(self.cursor.used, device=query.device)
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        return dense_mask(self.config, seen, self.config.get_text_config(decoder=True).dtype or torch.float32)
