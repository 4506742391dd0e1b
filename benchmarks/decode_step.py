"""One step of decoding, alone: its time at several string lengths, and how much of the memory bound it reaches."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import Spread, seconds
from torch import Tensor

from sequencematch.models.prepare import core_of, extend_forward, planned_attention
from sequencematch.rollouts.decoder import Decoder

TOKEN = 5
"""What is fed; the values do not matter."""


@torch.no_grad()
def step_times(model: Any, batch: int, lengths: tuple[int, ...], repeats: int) -> dict[int, dict[str, float]]:
    """For strings of each length: median seconds of a whole batch's step, and of its attention alone; its bytes."""
    core = core_of(model)
    extend_forward(core)
    found = {}
    with planned_attention(core):
        for length in lengths:
            decoder = Decoder(model, core.config.vocab_size, batch, length)
            decoder.prefill([[TOKEN] * length], [0])
            decoder.copy(0, range(1, batch), length - 1)
            step, attend = _calls(decoder, batch, length)
            times: dict[str, list[float]] = {"step": [], "attention": []}
            for count in range(repeats + 2):
                for name, call in (("step", step), ("attention", attend)):
                    taken = seconds(call)
                    if count >= 2:
                        times[name].append(taken)
            found[length] = {name: statistics.median(values) for name, values in times.items()}
            found[length]["bytes"] = step_bytes(core, decoder, length)
    return found


def _calls(decoder: Decoder, batch: int, length: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    tokens, slots = [TOKEN] * batch, [length - 1] * batch
    decoder.step(tokens, slots)
    keys = decoder.cache.slot_layers[0].keys
    heads = decoder.core.config.num_attention_heads
    query = keys.new_ones(batch, keys.shape[1], heads // keys.shape[1], keys.shape[-1])
    mask = query.new_zeros(batch, 1, 1, length)

    def attend() -> Tensor | None:
        output = None
        for layer in decoder.cache.slot_layers:
            output = F.scaled_dot_product_attention(query, layer.keys[:, :, :length], layer.values[:, :, :length], mask)
        return output

    return lambda: decoder.step(tokens, slots), attend


def step_bytes(core: Any, decoder: Decoder, length: int) -> float:
    """The least that a step reads: every weight once (tied ones too), and keys and values of all strings."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in core.parameters())
    layers = decoder.cache.slot_layers
    return float(weights + len(layers) * 2 * layers[0].keys[:, :, :length].numel() * layers[0].keys.element_size())


def bandwidth(device: str) -> float:
    """Bytes per second of a large copy, read and written both counted."""
    source = torch.zeros(2**30 if device == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median([seconds(lambda: target.copy_(source)) for _ in range(12)][2:])


def step_ratios(steps: dict[int, dict[str, float]]) -> dict[str, Spread]:
    """A step at the longest string over one at the shortest, whole and without what attention takes alone."""
    first, *_, last = steps.values()
    whole = last["step"] / first["step"]
    rest = (last["step"] - last["attention"]) / (first["step"] - first["attention"])
    lengths = f"{max(steps)}_over_{min(steps)}"
    return {f"step_{lengths}": Spread.of([whole]), f"step_without_attention_{lengths}": Spread.of([rest])}
