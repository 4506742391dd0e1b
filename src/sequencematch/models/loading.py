"""Loading a model and its tokenizer from a folder or hub id, with one clear sentence when that fails."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, reason_of
from .backspace import add_backspace_token, recorded_deletions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer as `AutoTokenizer.from_pretrained` does; beside adapters without one, that of their base.

    Raises InputError if there is none.
    """
    from transformers import AutoTokenizer

    _check_folder(name, "tokenizer")
    revision = kwargs.get("revision") or "main"
    if _is_adapters(name, revision) and not _has_tokenizer(name, revision):
        return load_tokenizer(_config_of(name, revision).base_model_name_or_path)
    return _load(AutoTokenizer, name, "tokenizer", **kwargs)


def load_model(name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model as `AutoModelForCausalLM.from_pretrained` does, with sdpa unless told otherwise.

    Adapters are loaded onto the base model that they name, and can be trained further. The tokenizer beside them says
    how many embeddings the base must have, and what the deletion actions are.

    Raises InputError if there is no model, or if its adapters do not fit their base.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _check_folder(name, "model")
    revision = kwargs.get("revision") or "main"
    if _is_adapters(name, revision):
        return _load_adapters(name, revision, kwargs)
    config = _load(AutoConfig, name, "model", revision=revision)
    kwargs["attn_implementation"] = kwargs.get("attn_implementation") or attention_of(config)
    return _load(AutoModelForCausalLM, name, "model", **kwargs)


def require_bitsandbytes() -> None:
    """Raise InputError if the package that loads models in 4 or 8 bits is missing; ask before making its config."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "load_in_4bit and load_in_8bit need the bitsandbytes package; pip install 'sequencematch[quantisation]'"
        )


def attention_of(config: Any) -> str:
    """`sdpa`, or `eager` for a family without it: the latter loads what `check_supported` then judges."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(family, "_supports_sdpa", True) else "eager"


def _is_adapters(name: str, revision: str) -> bool:
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except OSError:  # no such thing on the hub: what loads it can say so better
        return False


def _has_tokenizer(name: str, revision: str) -> bool:
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    return bool(get_tokenizer_config(name, revision=revision))


def _config_of(name: str, revision: str) -> Any:
    """The config of adapters, which says what model they were trained on."""
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise InputError(
            f"'{name}' holds adapters, which need the peft package; pip install 'sequencematch[peft]'"
        ) from error
    config = _load(PeftConfig, name, "adapters", revision=revision)
    if not config.base_model_name_or_path:
        raise InputError(
            f"the adapters in '{name}' do not say which model they belong to; set base_model_name_or_path in their "
            "adapter_config.json"
        )
    return config


def _load_adapters(name: str, revision: str, kwargs: dict[str, Any]) -> Any:
    """The base of adapters, with the deletion actions that the tokenizer beside them records, and the adapters."""
    config = _config_of(name, revision)
    try:
        model: Any = load_model(config.base_model_name_or_path, **{**kwargs, "revision": config.revision})
    except InputError as error:
        raise InputError(f"the base of the adapters in '{name}' is missing: {error}") from error
    rows = len(model.get_input_embeddings().weight)
    if _has_tokenizer(name, revision):
        tokenizer = load_tokenizer(name, revision=revision)
        if len(tokenizer) > rows:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        deletions = recorded_deletions(tokenizer)
        if deletions:
            add_backspace_token(model, tokenizer, deletions)
    _check_rows(name, config, len(model.get_input_embeddings().weight))
    return _put_on(model, name, config, revision).eval()


def _check_rows(name: str, config: Any, rows: int) -> None:
    """Raise InputError if adapters train tokens that the model has no rows for."""
    indices = getattr(config, "trainable_token_indices", None) or []
    trained = [token for tokens in (indices.values() if isinstance(indices, dict) else [indices]) for token in tokens]
    if trained and max(trained) >= rows:
        raise InputError(
            f"the adapters in '{name}' train token {max(trained)}, but their base has {rows} tokens and the tokenizer "
            "beside them brings no more; save the tokenizer that they were trained with into that folder"
        )


def _put_on(model: Any, name: str, config: Any, revision: str) -> Any:
    """The model with the adapters of a folder. Raises InputError unless every one of their tensors has its place."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        saved = load_peft_weights(name, device="cpu", revision=revision)
    except Exception as error:  # missing, cut short, or not readable
        raise InputError(f"no adapters can be loaded from '{name}': {reason_of(error)}") from error
    misfit = InputError(
        f"the adapters in '{name}' do not fit '{config.base_model_name_or_path}', whose layers have other names or "
        "sizes; set base_model_name_or_path in their adapter_config.json to the model that they were trained on"
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, name, is_trainable=True, revision=revision)
    except Exception as error:  # peft has one for each way not to fit
        raise misfit from error
    # Tensors that have no place in the model, peft would pass over.
    names = {key.replace(f".{adapted.active_adapter}", "") for key in adapted.state_dict()}
    if not saved.keys() <= names | get_peft_model_state_dict(adapted, save_embedding_layers=False).keys():
        raise misfit
    return adapted


def _load(loader: Any, name: str, what: str, **kwargs: Any) -> Any:
    _check_folder(name, what)
    try:
        return loader.from_pretrained(name, **kwargs)
    except Exception as error:  # the loaders raise many kinds; each means that nothing usable is there
        raise InputError(f"no {what} can be loaded from '{name}': {reason_of(error)}") from error


def _check_folder(name: str, what: str) -> None:
    """Raise InputError if `name` is meant as a folder and there is none."""
    path = Path(name)
    if not path.exists() and (
        path.is_absolute() or name.startswith(".") or (path.parent != Path() and path.parent.is_dir())
    ):
        raise InputError(f"there is no folder '{name}' to load a {what} from; check the path")
