"""A character tokenizer for small models trained from scratch on a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
"""The special tokens, in the order of their ids from 0."""


def build_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer with one token for each character of `alphabet`, in its order, and four special tokens.

    Decoding what was encoded gives the text back, spaces and newlines included; a character outside the alphabet
    becomes `<unk>`, and nothing is added to a text. It is saved, loaded (`AutoTokenizer`) and extended
    (`add_special_tokens`) as any other.

    Raises InputError if the alphabet is empty or has a character twice.
    """
    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise InputError(f"an alphabet has each of its characters once and at least one of them, not {alphabet!r}")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS.values(), *alphabet]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )
