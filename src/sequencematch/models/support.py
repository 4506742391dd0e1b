"""Which models the state tree can run through: attention-only, with explicit positions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITION_DEPENDENT_ROPE = ("dynamic", "longrope")

SDPA, EAGER = "state_tree", "state_tree_eager"
"""The names under which `models.attention` registers itself with transformers."""
ATTENTION_THAT_TAKES_MASKS = ("sdpa", "eager", SDPA, EAGER)


def check_supported(model: PreTrainedModel) -> None:
    """Raise InputError, naming the family and the reason, if a state tree would not equal its separate paths.

    On a tree a node's context is its ancestors, given by a mask and by position ids. A model with recurrent state
    (Mamba and hybrids), with positions taken from the row index (ALiBi), or whose rotary base depends on the
    sequence's length, sees something else.
    """
    reason = unsupported_reason(model)
    if reason:
        raise unsupported(model, reason)


def unsupported(model: Any, reason: str) -> InputError:
    """The error to raise for a model that cannot run a state tree."""
    return InputError(
        f"models of the family '{model.config.model_type}' are not supported: {reason}; "
        "use an attention-only family such as llama, qwen3, mistral or gpt2"
    )


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why the model cannot run a state tree, or None if it can."""
    if model.config._attn_implementation not in ATTENTION_THAT_TAKES_MASKS:
        return f"attn_implementation='{model.config._attn_implementation}' takes no mask; load it with 'sdpa'"
    return irreversible_reason(model)


def irreversible_reason(model: PreTrainedModel) -> str | None:
    """Why the family's strings can neither branch nor be rolled back, or None if they can."""
    config = model.config.get_text_config(decoder=True)
    if getattr(model, "_is_stateful", False) or _has_recurrent_layers(config):
        return "its layers carry recurrent state, which cannot branch or be rolled back"
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(config, "alibi", False):
        return "it does not take explicit position ids"
    if not model.is_backend_compatible():
        return "it does not use the common attention interface of transformers"
    if getattr(config, "attn_temperature_tuning", False):
        return "its attention temperature depends on the row index"
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        return "its attention is chunked by row index"
    rope = getattr(config, "rope_parameters", None) or {}
    variants = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if any(variant.get("rope_type") in _POSITION_DEPENDENT_ROPE for variant in variants):
        return "its rotary embedding depends on the sequence's length"
    return None


def max_positions(model: Any) -> int | None:
    """The longest string that the model has positions for, or None if it sets no limit."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def check_fits(model: Any, prompt_length: int, completion_length: int) -> None:
    """Raise InputError if a prompt and a completion of so many tokens exceed the model's positions."""
    positions = max_positions(model)
    if positions is not None and prompt_length + completion_length > positions:
        raise InputError(
            f"a prompt of {prompt_length} tokens and a completion of {completion_length} do not fit the model's "
            f"{positions} positions; shorten the prompt or lower max_completion_length"
        )


def _has_recurrent_layers(config) -> bool:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=config).layers
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return any(type(layer) not in plain for layer in layers)
