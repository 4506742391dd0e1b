"""Adapters (peft) on a model with deletion actions: their tokens' rows train with them, and are saved with them."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate.utils import extract_model_from_parallel
from transformers import AutoConfig

from ..errors import InputError, reason_of
from ..mdp import ActionSpace
from .four_bit import check_differentiable
from .prepare import core_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def add_adapters(
    model: Any,
    peft_config: PeftConfig,
    space: ActionSpace,
    *,
    gradient_checkpointing: bool = False,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> PeftModel:
    """Give a model adapters with which the rows of its deletion tokens train, in the input and the output embedding.

    Adapters alone leave the embeddings frozen, and a new token could then never be learnt. With LoRA, peft's
    `trainable_token_indices` train just these rows, one set of them where the embeddings are tied. A head with a bias
    is trained as a whole (`modules_to_save`), as are both embeddings with adapters that cannot train single rows.
    Embeddings that `peft_config` already trains are left to it; where they are tied, they stay so.

    Args:
        model: a causal language model of transformers, prepared (`prepare_model`) or not. Its own modules are wrapped
            in place. One that is quantised goes through peft's `prepare_model_for_kbit_training` first.
        peft_config: which adapters, such as a `peft.LoraConfig`; it is not changed.
        space: the model's action space.
        gradient_checkpointing: whether the model will be trained with it.
        gradient_checkpointing_kwargs: its options.

    Raises InputError for a model that has adapters already or cannot be trained, and for adapters that cannot train
    these rows.
    """
    from peft import PeftConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers.integrations import is_deepspeed_zero3_enabled

    if has_adapters(model):
        raise InputError(
            "the model has adapters already; pass it without peft_config, or merge them first (merge_and_unload)"
        )
    if not isinstance(peft_config, PeftConfig):
        raise InputError(f"peft_config must be a config of peft, such as LoraConfig, not {type(peft_config).__name__}")
    check_differentiable(model)
    config = _training_rows(peft_config, model, sorted(space.by_token))
    quantised = getattr(model, "is_quantized", False)
    if quantised:
        options = {"gradient_checkpointing_kwargs": gradient_checkpointing_kwargs or {}}
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing, **options)
    try:
        # Parameters of two types would not fit into the buffers that ZeRO-3 gathers them in.
        adapted = get_peft_model(model, config, autocast_adapter_dtype=quantised or not is_deepspeed_zero3_enabled())
    except (ValueError, TypeError) as error:
        raise InputError(f"peft cannot add these adapters: {reason_of(error)}") from error
    for which in _frozen(adapted, space):
        raise InputError(
            f"with these adapters the deletion tokens' rows of the {which} embedding would stay frozen; take the "
            "embeddings out of modules_to_save and target_modules, and their rows are trained by themselves"
        )
    if gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def check_trainable(model: Any, space: ActionSpace) -> None:
    """Raise InputError for a quantised model that cannot be trained; warn if the deletion tokens cannot be learnt.

    That is decided by their rows of the output embedding. A deletion is never part of a state, so on trees the rows of
    the input embedding have no gradient.

    Args:
        model: the model that is about to be trained.
        space: its action space.
    """
    check_differentiable(model)
    if not has_adapters(model):
        if getattr(core_of(model), "is_quantized", False):
            raise InputError("a quantised model trains through adapters only; pass a peft_config (use_peft: true)")
        return
    if "output" in _frozen(model, space):
        warnings.warn(
            "the deletion tokens' rows of the output embedding are frozen, so the model can hardly learn to delete; "
            "pass the model without adapters and a peft_config, or list the tokens in trainable_token_indices",
            stacklevel=2,
        )


def save_adapters(model: PeftModel, folder: str | Path, **kwargs: Any) -> None:
    """`model.save_pretrained`, without whole embeddings where the rows that the base lacks are among the trained ones.

    By itself peft saves both embeddings as soon as they have been resized. Save the tokenizer into the same folder:
    it says how large they must be, and what its tokens delete.

    Args:
        model: the model with its adapters.
        folder: where to.
        kwargs: what else `PeftModel.save_pretrained` takes.
    """
    kwargs.setdefault("save_embedding_layers", _embeddings_to_save(model))
    model.save_pretrained(str(folder), **kwargs)


def has_adapters(model: Any) -> bool:
    """Whether a model is peft's, or has adapters that transformers has loaded into it."""
    inner = extract_model_from_parallel(model)
    return hasattr(inner, "get_base_model") or getattr(inner, "_hf_peft_config_loaded", False)


def stock_layer(module: Any) -> Any:
    """The layer that is inside what peft has wrapped it in."""
    for name in ("original_module", "base_layer"):
        module = getattr(module, name, module)
    return module


def _training_rows(peft_config: PeftConfig, model: Any, tokens: list[int]) -> Any:
    """A copy of `peft_config` by which the rows of `tokens` train in both embeddings."""
    config: Any = copy.deepcopy(peft_config)
    if not tokens:
        return config
    names = {module: name for name, module in model.named_modules()}
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inputs.weight is outputs.weight
    left = [module for module in (inputs, outputs) if not _is_trained(config, names[module])]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if hasattr(config, "trainable_token_indices"):
        if tied and outputs.bias is not None:
            raise InputError("peft cannot tie embeddings with an output bias; train all of the model instead")
        if tied and len(left) < 2:
            config.ensure_weight_tying = True
            return config
        _add_tokens(config, {names[module]: module for module in left}, names[inputs], tokens, tied)
    elif config.is_prompt_learning or not hasattr(config, "modules_to_save") or tied:
        raise InputError(
            f"{kind} adapters cannot train the embeddings of the deletion tokens in this model; use peft.LoraConfig"
        )
    else:
        config.modules_to_save = [*(config.modules_to_save or ()), *(names[module] for module in left)]
    return config


def _is_trained(config: Any, name: str) -> bool:
    """Whether a config of peft trains a module already: as a whole, or by adapters on it."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if any(name.endswith(module) for module in getattr(config, "modules_to_save", None) or ()):
        return True
    targets = getattr(config, "target_modules", None)
    # All linear layers are those inside the model, without its head; and no targets are the family's usual ones.
    if not targets or targets == "all-linear":
        return False
    found = check_target_module_exists(config, name)  # it says by a class of its own that a module is excluded
    return found is True or isinstance(found, re.Match)


def _add_tokens(config: Any, embeddings: dict[str, Any], inputs: str, tokens: list[int], tied: bool) -> None:
    """Add tokens to those whose rows a LoRA config trains, in embeddings given by name."""
    given = config.trainable_token_indices or {}
    indices = {inputs: given} if isinstance(given, list) else dict(given)
    rows = {}
    for name in embeddings:
        found = [key for key in indices if name.endswith(key)]
        rows[name] = sorted({*tokens, *(row for key in found for row in indices.pop(key))})
    if tied:  # peft then gives both of them the rows of the input embedding
        rows = {inputs: sorted({row for found in rows.values() for row in found})}
    # peft leaves the bias out of a head whose rows it trains.
    whole = [name for name in rows if getattr(embeddings[name], "bias", None) is not None]
    config.trainable_token_indices = indices | {name: found for name, found in rows.items() if name not in whole}
    if whole:
        config.modules_to_save = [*(config.modules_to_save or ()), *whole]


def _frozen(model: Any, space: ActionSpace) -> list[str]:
    """In which of the embeddings, `input` and `output`, the rows of the deletion tokens do not train."""
    core = core_of(model)
    embeddings = {"input": core.get_input_embeddings(), "output": core.get_output_embeddings()}
    return [name for name, module in embeddings.items() if space.deletions and not _trains(module, set(space.by_token))]


def _trains(embedding: Any, tokens: set[int]) -> bool:
    adapter = getattr(embedding, "token_adapter", None)
    if adapter is None:
        return any(parameter.requires_grad for parameter in embedding.parameters())
    deltas = {name: adapter.trainable_tokens_delta[name] for name in adapter.active_adapters}
    rows = {row for name, delta in deltas.items() if delta.requires_grad for row in adapter.token_indices[name]}
    return tokens <= rows


def _embeddings_to_save(model: Any) -> bool | Literal["auto"]:
    """What to tell peft about saving whole embeddings: False if adapters bring every row that their base lacks."""
    core = core_of(model)
    embeddings = core.get_input_embeddings(), core.get_output_embeddings()
    rows = set((getattr(core.config, "deletion_token_ids", None) or {}).values())
    try:
        base = AutoConfig.from_pretrained(model.active_peft_config.base_model_name_or_path)
    except Exception:  # there is none, or none that can be read: then nothing is known of its rows
        pass
    else:
        rows -= set((getattr(base, "deletion_token_ids", None) or {}).values())
        size = base.get_text_config(decoder=True).vocab_size
        rows |= set(range(size, len(stock_layer(embeddings[0]).weight)))
    return not all(_brings(embedding, rows) for embedding in embeddings) if rows else "auto"


def _brings(embedding: Any, rows: set[int]) -> bool:
    """Whether adapters hold these rows of an embedding, or a copy of it."""
    adapter = getattr(embedding, "token_adapter", None)
    if adapter is None:
        return hasattr(embedding, "modules_to_save")
    return rows <= {row for name in adapter.active_adapters for row in adapter.token_indices[name]}
