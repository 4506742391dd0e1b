"""Loading a model and its tokenizer from a folder or hub id, with one clear sentence when that fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer as `AutoTokenizer.from_pretrained` does. Raises InputError if there is none."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, name, "tokenizer", **kwargs)


def load_model(name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model as `AutoModelForCausalLM.from_pretrained` does. Raises InputError if there is none."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, name, "model", **kwargs)


def _load(loader: Any, name: str, what: str, **kwargs: Any) -> Any:
    path = Path(name)
    if not path.exists() and (
        path.is_absolute() or name.startswith(".") or (path.parent != Path() and path.parent.is_dir())
    ):
        raise InputError(f"there is no folder '{name}' to load a {what} from; check the path")
    try:
        return loader.from_pretrained(name, **kwargs)
    except Exception as error:  # the loaders raise many kinds; each means that nothing usable is there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"no {what} can be loaded from '{name}': {reason}") from error
