"""A checkpoint that FSDP2 has written, whole as it is, in a run that shards nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from transformers.utils import SAFE_WEIGHTS_NAME

FSDP_MODEL, FSDP_OPTIMIZER = "pytorch_model_fsdp.bin", "optimizer.bin"
"""What accelerate writes beside the files of any other run, with the state of all ranks in each."""


def is_from_fsdp(folder: str) -> bool:
    """Whether FSDP2 has written a checkpoint that holds whole weights as well."""
    return (Path(folder) / FSDP_MODEL).exists() and (Path(folder) / SAFE_WEIGHTS_NAME).exists()


def load_weights(model: Any, folder: str) -> None:
    """Load the whole weights. Raises ValueError if there are others than the model has, or fewer."""
    weights = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # Tied weights are saved once.
    missing = [name for name in missing if name not in (getattr(model, "all_tied_weights_keys", None) or {})]
    if missing or unexpected:
        raise ValueError(f"the weights do not fit the model: {(missing or unexpected)[0]}")


def load_optimizer(model: Any, optimizer: Any, folder: str) -> None:
    """Load the optimizer's state, which FSDP2 keeps by the parameters' names; `optimizer` is accelerate's."""
    state = torch.load(Path(folder) / FSDP_OPTIMIZER, weights_only=True, map_location="cpu")
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer.optimizer, state, options=options)
