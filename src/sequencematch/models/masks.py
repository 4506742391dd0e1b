"""Attention masks in the form that a model's layers want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def layer_masks(config: Any, seen_within: Callable[[int | None], Any]) -> Any:
    """One mask for all layers, or one for each layer type where a model mixes full and sliding-window attention.

    Args:
        config: the model's config.
        seen_within: window size (None for none) -> the mask of layers with that window.

    Returns:
        what `seen_within` gives, or a dict of it by layer type.
    """
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    if not kinds:
        return seen_within(window)
    if kinds == {"full_attention"}:
        return seen_within(None)
    return {"full_attention": seen_within(None), "sliding_attention": seen_within(window)}


def is_eager(config: Any) -> bool:
    """Whether the model computes attention by itself; it would add a boolean mask to the scores as 0 and 1."""
    return config._attn_implementation.endswith("eager")


def dense_mask(config: Any, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A dense mask as the model's attention takes it: `seen` itself, or its additive equivalent for eager."""
    return additive(seen, dtype) if is_eager(config) else seen


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `seen` and a large negative number elsewhere, to be added to the scores."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
