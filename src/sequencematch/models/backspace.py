"""Giving a model and its tokenizer deletion actions, and reading them back from a saved folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import InputError
from ..mdp import ActionSpace, Deletion

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
    it starts as likely as an average token. The actions are recorded in `model.config.deletion_actions`:
    `save_pretrained` of both makes a folder that reloads with them. Adding a token twice changes nothing.

    Args:
        model: any causal language model of transformers.
        tokenizer: its tokenizer.
        deletions: token text -> how many tokens the action deletes (a number >= 1, or `"all"`).

    Raises:
        InputError: no eos token, or the token is eos or already means another deletion; nothing is changed then.
    """
    known: dict = dict(getattr(model.config, "deletion_actions", None) or {})
    for text, length in deletions.items():
        Deletion(0, length)
        if known.get(text, length) != length:
            raise InputError(f"{text!r} already deletes {known[text]} tokens in this model; use another token text")
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set tokenizer.eos_token before adding deletion actions")
    if tokenizer.eos_token in deletions:
        raise InputError(f"{tokenizer.eos_token!r} ends a completion and cannot delete as well; use another token text")
    tokenizer.add_special_tokens({"extra_special_tokens": list(deletions)}, replace_extra_special_tokens=False)
    vocabulary = tokenizer.get_vocab()
    new = [vocabulary[text] for text in deletions if text not in known]
    inputs: Any = model.get_input_embeddings()
    if len(tokenizer) > inputs.num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _initialise_rows(model, new)
    model.config.deletion_actions = {**known, **deletions}
    # Beside the names, because `model.generate` is called without the tokenizer.
    model.config.deletion_token_ids = {text: vocabulary[text] for text in model.config.deletion_actions}
    return action_space(model, tokenizer)


def action_space(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ActionSpace:
    """The actions of `model`: its vocabulary, the tokenizer's eos, and the deletions its config records.

    Raises InputError if the tokenizer has no eos, or lacks a deletion token that the model has.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set tokenizer.eos_token to the token that ends a completion")
    recorded = getattr(model.config, "deletion_actions", None) or {}
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in recorded if text not in vocabulary]
    if missing:
        raise InputError(f"the tokenizer lacks the model's deletion token {missing[0]!r}; load the one saved with it")
    # In the order of token ids, since a saved config comes back with its keys in another order.
    deletions = sorted((Deletion(vocabulary[text], length) for text, length in recorded.items()), key=_token_id)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    return ActionSpace(vocab_size, tokenizer.eos_token_id, tuple(deletions))


def _token_id(deletion: Deletion) -> int:
    return deletion.token_id


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
