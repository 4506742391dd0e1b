"""Loading a model and its tokenizer from a folder or hub id, with one clear sentence when that fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer as `AutoTokenizer.from_pretrained` does. Raises InputError if there is none."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, name, "tokenizer", **kwargs)


def load_model(name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model as `AutoModelForCausalLM.from_pretrained` does, with sdpa unless told otherwise.

    Raises InputError if there is none.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _load(AutoConfig, name, "model", revision=kwargs.get("revision") or "main")
    kwargs["attn_implementation"] = kwargs.get("attn_implementation") or attention_of(config)
    return _load(AutoModelForCausalLM, name, "model", **kwargs)


def attention_of(config: Any) -> str:
    """`sdpa`, or `eager` for a family without it: the latter loads what `check_supported` then judges."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(family, "_supports_sdpa", True) else "eager"


def _load(loader: Any, name: str, what: str, **kwargs: Any) -> Any:
    path = Path(name)
    if not path.exists() and (
        path.is_absolute() or name.startswith(".") or (path.parent != Path() and path.parent.is_dir())
    ):
        raise InputError(f"there is no folder '{name}' to load a {what} from; check the path")
    try:
        return loader.from_pretrained(name, **kwargs)
    except Exception as error:  # the loaders raise many kinds; each means that nothing usable is there
        raise InputError(f"no {what} can be loaded from '{name}': {reason_of(error)}") from error
