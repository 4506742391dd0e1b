"""Layers in four bits, by bitsandbytes."""

from __future__ import annotations

from torch import nn

from ..errors import InputError


def keep_differentiable(model: nn.Module) -> None:
    """Keep layers in four bits in the form that gradients pass through.

    On a CPU with AVX512-BF16, bitsandbytes changes a layer's weights when it first runs in evaluation mode. What they
    go through from then on, in training mode too, has no backward pass and rounds to bfloat16: after one rollout,
    adapters would be trained on wrong gradients.
    """
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def check_differentiable(model: nn.Module) -> None:
    """Raise InputError if layers in four bits have been changed so: bitsandbytes cannot change them back."""
    states = (getattr(weight, "quant_state", None) for weight in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise InputError(
            "no gradient passes through layers in four bits that bitsandbytes changed when the model ran in evaluation "
            "mode on this processor; load the model anew, and train it before it runs"
        )
