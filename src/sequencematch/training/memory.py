"""How much memory a training step will need, from counts alone: what a dry run says before hours are spent."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from ..models.tiled_head import TILE_STATES

OPTIMIZER_STATES = {"ademamix": 3, "adafactor": 0, "sgd": 0, "lomo": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}
"""Numbers kept for each parameter, by a part of the optimizer's name; Adam and any other keep 2."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by what they are for."""

    weights: int
    """Trained and frozen parameters."""
    gradients: int
    """Of the trained parameters."""
    optimizer: int
    """The optimizer's own numbers."""
    activations: int
    """What the layers keep for the backward pass."""
    head: int
    """A tile of logits, and the states that are read with their gradients."""

    @property
    def total(self) -> int:
        """All of it, as if it were held at once."""
        return sum(astuple(self))


def memory_estimate(
    *,
    trainable_parameters: int,
    parameter_bytes: int,
    frozen_bytes: int,
    optimizer: str,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    vocab_size: int,
    nodes: int,
    activation_bytes: int,
    gradient_checkpointing: bool,
    tile_entries: int,
) -> MemoryEstimate:
    """Estimate the peak memory of a training step of a Llama-like decoder.

    A node of a layer keeps, in numbers: three for each of two norms (input, normalised, scaled; the input in float32),
    five of the attention (query, key, value, output, projected output) and four of the gated MLP. With checkpointing
    only the layers' inputs stay, and one layer at a time is run again.

    Gradients and activations are added, though without accumulation the ones come as the others go: the truth is at
    most a fifth below. Not in it: attention scores (eager attention) and masks, activations of adapters and dropout,
    copies that dequantise, the cache of rollouts, and what libraries hold for themselves. One device holds everything:
    FSDP and DeepSpeed ZeRO divide weights, gradients and optimizer by the number of processes.

    Args:
        trainable_parameters: how many numbers are trained.
        parameter_bytes: bytes of each of them.
        frozen_bytes: bytes of all other parameters, as they are stored (quantised ones: half a byte for 4 bit).
        optimizer: its name in `TrainingArguments.optim`.
        hidden_size, intermediate_size, num_layers, vocab_size: the model's shape.
        nodes: of the largest batch, prompts, deleted tokens and rollouts included.
        activation_bytes: bytes of a number in the linear layers: 4, or 2 in half precision, autocast included.
        gradient_checkpointing: whether layers are run again in the backward pass.
        tile_entries: logits in a tile; see `sequencematch.models.tiled_head.tile_entries`.
    """
    trained = trainable_parameters * parameter_bytes
    norm = hidden_size * (4 + 2 * activation_bytes)
    layer = nodes * (2 * norm + (5 * hidden_size + 4 * intermediate_size) * activation_bytes)
    kept = num_layers * nodes * hidden_size * activation_bytes + layer if gradient_checkpointing else num_layers * layer
    # Autocast keeps copies of the weights in the narrower type until the backward pass is done.
    copies = trainable_parameters * activation_bytes if activation_bytes < parameter_bytes else 0
    # In half precision a tile is held three times: as multiplied, in float32, and as the gradient to multiply.
    half = activation_bytes < 4
    tile = min(tile_entries, min(nodes, TILE_STATES) * vocab_size) * (4 + 2 * activation_bytes if half else 4)
    states = nodes * hidden_size * (4 + 2 * activation_bytes if half else 8)
    return MemoryEstimate(
        weights=trained + frozen_bytes,
        gradients=trained,
        optimizer=_optimizer_bytes(optimizer, trainable_parameters, parameter_bytes),
        activations=kept + nodes * norm + copies,
        head=tile + states,
    )


def _optimizer_bytes(name: str, parameters: int, parameter_bytes: int) -> int:
    states = next((count for part, count in OPTIMIZER_STATES.items() if part in name), 2)
    return states * parameters * (1 if "8bit" in name else parameter_bytes)
