"""Giving a model and its tokenizer deletion actions, and reading them back from a saved folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import InputError
from ..mdp import ActionSpace, Deletion
from .adapters import has_adapters, stock_layer
from .prepare import core_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BACKSPACE: dict[str, int | Literal["all"]] = {"<bksp>": 1}
"""The paper's action space: one backspace that deletes one token."""


def add_backspace_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    deletions: Mapping[str, int | Literal["all"]] = BACKSPACE,
) -> ActionSpace:
    """Add deletion actions to `model` and `tokenizer` in place, and return the action space (arXiv 2306.05426).

    Adds the missing tokens to the tokenizer, grows the embeddings if they have no room, and sets each new
    token's rows (input, output, output bias; one row where the two are tied) to the mean of the others, so that
    it starts as likely as an average token. A token that the tokenizer keeps in reserve can be used instead, as in
    `{"<|reserved_special_token_0|>": 1}`: nothing grows then. The actions are recorded in
    `model.config.deletion_actions` and in the tokenizer: `save_pretrained` of both makes a folder that reloads with
    them, and that of the tokenizer is enough beside adapters. Adding a token twice changes nothing.

    Args:
        model: any causal language model of transformers. One with adapters must have room for the tokens, and no
            adapters on its embeddings.
        tokenizer: its tokenizer.
        deletions: token text -> how many tokens the action deletes (a number >= 1, or `"all"`).

    Raises:
        InputError: no eos token, or the token is eos, means something else already (another deletion, a piece of a
            word), or comes too late for the model's adapters; nothing is changed then.
    """
    core = core_of(model)
    known = _recorded_in(core)
    _check_meanings(tokenizer, deletions, {**recorded_deletions(tokenizer), **known})
    new = [text for text in deletions if text not in known]
    size = len({*tokenizer.get_vocab(), *deletions})
    rows = len(stock_layer(core.get_input_embeddings()).weight)
    if has_adapters(model) and new:
        _check_adapted(core, size > rows)
    tokenizer.add_special_tokens({"extra_special_tokens": list(deletions)}, replace_extra_special_tokens=False)
    if len(tokenizer) > rows:
        core.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vocabulary = tokenizer.get_vocab()
    _initialise_rows(core, [vocabulary[text] for text in new])
    core.config.deletion_actions = {**known, **deletions}
    # Beside the names, because `model.generate` is called without the tokenizer.
    core.config.deletion_token_ids = {text: vocabulary[text] for text in core.config.deletion_actions}
    # In the tokenizer as well, because adapters are saved without the model's config.
    tokenizer.init_kwargs["deletion_actions"] = dict(core.config.deletion_actions)
    return action_space(model, tokenizer)


def action_space(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ActionSpace:
    """The actions of `model`: its vocabulary, the tokenizer's eos, and the deletions on record.

    Those are what the model's config says, or if it says nothing, what the tokenizer does.

    Raises InputError if the tokenizer has no eos, lacks a deletion token that the model has, or has tokens that the
    model does not have.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set tokenizer.eos_token to the token that ends a completion")
    core = core_of(model)
    recorded = _recorded_in(core) or recorded_deletions(tokenizer)
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in recorded if text not in vocabulary]
    if missing:
        raise InputError(f"the tokenizer lacks the model's deletion token {missing[0]!r}; load the one saved with it")
    # In the order of token ids, since a saved config comes back with its keys in another order.
    deletions = sorted((Deletion(vocabulary[text], length) for text, length in recorded.items()), key=_token_id)
    vocab_size = len(stock_layer(core.get_output_embeddings()).weight)
    highest = max(vocabulary.values())
    if highest >= vocab_size:
        raise InputError(
            f"the tokenizer has token ids up to {highest}, but the model only {vocab_size} embeddings; use the "
            "tokenizer that belongs to the model, or model.resize_token_embeddings(len(tokenizer))"
        )
    return ActionSpace(vocab_size, tokenizer.eos_token_id, tuple(deletions))


def recorded_deletions(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | Literal["all"]]:
    """The deletion actions that a tokenizer has on record: token text -> how many tokens it deletes."""
    return dict(tokenizer.init_kwargs.get("deletion_actions") or {})


def _recorded_in(core: Any) -> dict[str, int | Literal["all"]]:
    return dict(getattr(core.config, "deletion_actions", None) or {})


def _token_id(deletion: Deletion) -> int:
    return deletion.token_id


def _check_meanings(tokenizer: PreTrainedTokenizerBase, deletions: Mapping, known: Mapping) -> None:
    """Raise InputError unless every token of `deletions` is free to mean just that."""
    for text, length in deletions.items():
        Deletion(0, length)
        if known.get(text, length) != length:
            raise InputError(f"{text!r} already deletes {known[text]} tokens in this model; use another token text")
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set tokenizer.eos_token before adding deletion actions")
    if tokenizer.eos_token in deletions:
        raise InputError(f"{tokenizer.eos_token!r} ends a completion and cannot delete as well; use another token text")
    ordinary = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    for text in deletions:
        # What tokenizers write for a space or newline counts as a letter, but for the mark of SentencePiece.
        if text in ordinary and all(mark.isalnum() or mark.isspace() or mark == "\u2581" for mark in text):
            raise InputError(
                f"{text!r} is a piece of ordinary text in this vocabulary and cannot delete; use a new token text, or "
                "one that the tokenizer reserves"
            )


def _check_adapted(core: Any, grows: bool) -> None:
    """Raise InputError unless a model with adapters can take new deletion tokens."""
    embeddings = core.get_input_embeddings(), core.get_output_embeddings()
    if grows or any(stock_layer(embedding) is not embedding for embedding in embeddings):
        reason = "the embeddings would have to grow" if grows else "the embeddings are among what the adapters train"
        raise InputError(
            f"deletion tokens cannot be added to this model with its adapters, because {reason}; add them before the "
            "adapters"
        )


@torch.no_grad()
def _initialise_rows(model: PreTrainedModel, tokens: list[int]) -> None:
    """Set the rows of `tokens` to the mean of all other rows, in every embedding the model has."""
    if not tokens:
        return
    output: Any = model.get_output_embeddings()
    found: tuple[Any, ...] = (model.get_input_embeddings().weight, output.weight, output.bias)
    tables = {id(table): table for table in found if table is not None}
    for table in tables.values():
        others = torch.ones(table.shape[0], dtype=torch.bool, device=table.device)
        others[tokens] = False
        table[tokens] = table[others].float().mean(0).to(table.dtype)
