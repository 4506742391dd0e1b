"""Operations of a training step, counted from the model's shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from workload import Size

PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "L40S": 362e12, "A10": 125e12}
"""Dense bf16 operations per second that vendors state, by a part of the card's name."""


def peak_flops(device: str) -> float | None:
    """What the GPU can do per second in bf16, None where it is not known, as on a CPU."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((PEAK[card] for card in sorted(PEAK, key=len, reverse=True) if card in name), None)


def step_flops(size: Size, lengths: Sequence[int]) -> float:
    """Forward and backward on documents of these lengths: two operations per weight and token, three times over.

    Attention counts the pairs that a causal mask leaves. Recomputation, in the head or elsewhere, does not count.
    """
    tokens = sum(lengths)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    head_width = size.hidden // size.heads
    attention = size.hidden * (2 * size.hidden + 2 * size.kv_heads * head_width)
    layer = attention + 3 * size.hidden * size.intermediate
    linear = 2 * tokens * (size.layers * layer + size.vocab * size.hidden)
    return 3 * (linear + 4 * size.layers * size.hidden * pairs)
