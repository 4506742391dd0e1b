"""A policy as one plain model in a folder, adapters merged, for those who run it elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from ..errors import InputError
from .prepare import core_of

_OF_ADAPTERS = re.compile(r"\.(lora_\w+|original_module|trainable_tokens_(delta|original))(\.|$)")
"""Weights that plain transformers has no place for: they are in others, once merged."""
_WRAPPERS = re.compile(r"\.(base_layer|token_adapter|modules_to_save\.[^.]+)(?=\.)")
"""What peft puts into the names of the others."""


def save_merged(model: Any, folder: str | Path) -> None:
    """Save a policy's weights and configuration, as plain transformers and vLLM read them.

    Adapters are merged for the time of saving; afterwards every weight is what it was, to the bit.

    Args:
        model: the policy, with or without peft's adapters, its weights whole (see `whole_weights`).
        folder: where to.

    Raises InputError for a quantised model, whose weights do not take adapters in.
    """
    inner, core = extract_model_from_parallel(model), core_of(model)
    if getattr(core, "is_quantized", False):
        raise InputError("a quantised model cannot be handed to vLLM; train without load_in_4bit, or without use_vllm")
    if not hasattr(inner, "merge_adapter"):
        core.save_pretrained(str(folder))
        return
    with _merged(inner):
        weights = {
            _WRAPPERS.sub("", name): weight
            for name, weight in core.state_dict().items()
            if not _OF_ADAPTERS.search(name)
        }
        core.save_pretrained(str(folder), state_dict=weights)


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Inside, the adapters are part of the weights. Taking them out again rounds, so copies are put back."""
    with torch.no_grad():
        before: list[tuple[Tensor, Tensor]] = [
            (weight, weight.detach().to("cpu", copy=True))
            for name, weight in model.named_parameters()
            if ".base_layer." in name
        ]
        model.merge_adapter()
        try:
            yield
        finally:
            model.unmerge_adapter()
            for weight, copy in before:
                weight.copy_(copy)
