"""Attention masks in the form that a model's layers want them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def layer_masks(config, seen_within: Callable[[int | None], Tensor]) -> Tensor | dict[str, Tensor]:
    """One mask for all layers, or one for each layer type where a model mixes full and sliding-window attention.

    Args:
        config: the model's config.
        seen_within: window size (None for none) -> bool tensor, True where a query sees a key.

    Returns:
        what `seen_within` gives, or its additive equivalent for eager attention, which would add a boolean mask to
        the scores as 0 and 1: silently wrong.
    """
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ())

    def mask(window: int | None) -> Tensor:
        seen = seen_within(window)
        if config._attn_implementation != "eager":
            return seen
        dtype = text.dtype or torch.float32
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    if not kinds:
        return mask(window)
    if kinds == {"full_attention"}:
        return mask(None)
    return {"full_attention": mask(None), "sliding_attention": mask(window)}
