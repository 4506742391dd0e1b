"""The engine that samples a saved model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..models import action_space, load_model, load_tokenizer
from .engine import HFRolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_engine(
    folder: str, engine: str = "hf", batch_size: int = 64, base_urls: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """An engine with a saved model in its `model`, and the tokenizer.

    The model is on the accelerator if there is one, unless vLLM in this process has that to itself.

    Args:
        folder: of the model.
        engine: one of ENGINES.
        batch_size: rollouts under way at a time, where this library samples.
        base_urls: addresses of vLLM's servers that serve the model, separated by commas; None loads it in this process.

    Raises InputError for a folder without a model that can be sampled, and where vLLM is missing or does not answer.
    """
    tokenizer: Any = load_tokenizer(folder)
    model: Any = load_model(folder)
    space = action_space(model, tokenizer)
    if engine == "vllm":
        from .vllm import load_vllm

        return load_vllm(folder, model, space, tokenizer, base_urls), tokenizer
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return HFRolloutEngine(model, space, batch_size, tokenizer), tokenizer
