"""What a trainer trains: model and tokenizer, given or loaded, with deletion actions and adapters; and its data."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import apply_tokenizer_options, tokenize_dataset
from ..errors import InputError
from ..mdp import ActionSpace
from ..models import (
    BACKSPACE,
    action_space,
    add_adapters,
    add_backspace_token,
    check_trainable,
    max_positions,
    prepare_model,
)
from ..models.loading import load_model, load_tokenizer
from .config import SequenceMatchConfig


def make_policy(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    args: SequenceMatchConfig,
    peft_config: Any | None = None,
    quantization_config: Any | None = None,
) -> tuple[Any, PreTrainedTokenizerBase, ActionSpace]:
    """The model to train, its tokenizer and its actions.

    Args:
        model: a causal language model, or the id or folder to load one from.
        tokenizer: its tokenizer; None loads the one beside an id or folder.
        args: the tokenizer's options, `deletions`, and `model_init_kwargs` for a model that is loaded.
        peft_config: wraps the model in adapters.
        quantization_config: how to quantise a model that is loaded.

    Raises InputError for a model that cannot be loaded or trained, and for one without a tokenizer.
    """
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model)
        kwargs: dict = dict(args.model_init_kwargs)  # type: ignore[arg-type]
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        model = load_model(model, **kwargs)
    elif args.model_init_kwargs or quantization_config is not None:
        raise InputError(
            "model_init_kwargs and quantization_config are for a model that is given as an id or folder; "
            "pass them to from_pretrained instead"
        )
    if tokenizer is None:
        raise InputError("give the model's tokenizer as processing_class")
    apply_tokenizer_options(
        tokenizer, eos_token=args.eos_token, pad_token=args.pad_token, chat_template_path=args.chat_template_path
    )
    prepare_model(model, args.tree_attention)
    space = _with_deletions(model, tokenizer, args)
    if peft_config is None:
        check_trainable(model, space)
        return model, tokenizer, space
    adapted = add_adapters(
        model,
        peft_config,
        space,
        gradient_checkpointing=bool(args.gradient_checkpointing),
        gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,  # type: ignore[arg-type]
    )
    return adapted, tokenizer, space


def _with_deletions(model: Any, tokenizer: PreTrainedTokenizerBase, args: SequenceMatchConfig) -> ActionSpace:
    if args.deletions:
        return add_backspace_token(model, tokenizer, args.deletions)  # type: ignore[arg-type]
    space = action_space(model, tokenizer)
    if args.deletions is None and args.objective != "mle" and not space.deletions:
        return add_backspace_token(model, tokenizer, BACKSPACE)
    return space


def make_examples(
    dataset: Any, model: Any, tokenizer: PreTrainedTokenizerBase, space: ActionSpace, args: SequenceMatchConfig
) -> Any:
    """A data set, or each of several by name, as token ids; see `tokenize_dataset`."""
    if isinstance(dataset, dict):
        return {name: make_examples(part, model, tokenizer, space, args) for name, part in dataset.items()}
    with args.main_process_first(desc="tokenizing"):
        return tokenize_dataset(
            dataset,
            tokenizer,
            text_field=args.dataset_text_field,
            completion_only=args.completion_only_loss is not False,
            max_length=min(filter(None, (args.max_length, max_positions(model))), default=None),
            space=space,
            truncate_long=args.truncate_long,
            num_proc=args.dataset_num_proc,
        )
