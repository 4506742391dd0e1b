"""Make what the text study reads of a plain text file: a tokenizer, and documents to train on and to hold out.

    python studies/prepare_text.py --train train.txt --output runs/text/tinystories

Documents are what stands between separators, lines that match a pattern as a whole. Unless told otherwise it is the
`<|endoftext|>` of TinyStories; `--separator_pattern '= .* ='` cuts WikiText at every heading, `'= [^=].* ='` at titles.
OUTPUT then has `tokenizer`, a byte-level BPE trained on the training documents, and `data`, train.jsonl and test.jsonl
with one `text` each. Documents stay whole: training cuts those that are longer than its max_length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sequencematch.errors import InputError, reason_of
from sequencematch.files import write_whole

SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
"""In the order of their ids from 0. Bytes need no unknown token, and training adds the deletions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare what the command line names. Bad input prints one sentence and returns 1."""
    arguments = _parser().parse_args(argv)
    try:
        print(prepare(**vars(arguments)))
    except InputError as error:
        print(f"prepare_text: error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(
    train: Path,
    output: Path,
    valid: Path | None = None,
    separator_pattern: str = r"<\|endoftext\|>",
    vocab_size: int = 2048,
    held_out: int = 2000,
    min_tokens: int = 80,
    seed: int = 0,
) -> str:
    """Write tokenizer and data; see the command's help for the arguments.

    Returns what was made, in one line. Raises InputError, before anything is written, for what cannot be used.
    """
    separator = _compiled(separator_pattern)
    learned, kept_back = split(read_documents(train, separator), held_out, seed)
    if valid is not None:
        kept_back += read_documents(valid, separator)
    tokenizer = build_tokenizer(learned, vocab_size)
    lengths = [len(ids) for ids in tokenizer(kept_back, add_special_tokens=False)["input_ids"]]
    test = [text for text, length in zip(kept_back, lengths, strict=True) if length >= min_tokens]
    if not test:
        raise InputError(
            f"none of the {len(kept_back)} held-out documents has {min_tokens} tokens; hold out more, or lower "
            "min_tokens"
        )
    tokenizer.save_pretrained(output / "tokenizer")
    for name, texts in (("train", learned), ("test", test)):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        write_whole(output / "data" / f"{name}.jsonl", "".join(lines))
    short = len(kept_back) - len(test)
    return (
        f"{output}: {len(tokenizer)} tokens; {len(learned)} documents to train on, {len(test)} held out ({short} more "
        f"had fewer than {min_tokens} tokens and were left out)"
    )


def read_documents(path: Path, separator: re.Pattern[str]) -> list[str]:
    """The documents of a text file, between its separators. Raises InputError for none."""
    try:
        with path.open(encoding="utf-8") as lines:
            parts = itertools.groupby(lines, key=lambda line: separator.fullmatch(line.strip()) is not None)
            found = ["".join(part).strip() for separates, part in parts if not separates]
    except FileNotFoundError:
        raise InputError(f"there is no file '{path}'; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read as UTF-8 text: {reason_of(error)}") from None
    documents = [text for text in found if text]
    if not documents:
        raise InputError(f"there are no documents in '{path}'; check that it is the right file")
    return documents


def split(documents: Sequence[str], held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """Documents to train on, in their order, and those held out, at random. Raises InputError for too few of them.

    Short ones are held out too, and dropped only later: to pick long ones would leave short ones to train on.
    """
    if not 0 <= held_out < len(documents):
        raise InputError(
            f"held_out must be at least 0 and leave a document to train on, of {len(documents)}, not {held_out}; check "
            "the separator too"
        )
    chosen = random.Random(seed).sample(range(len(documents)), held_out)
    away = set(chosen)
    return [text for i, text in enumerate(documents) if i not in away], [documents[i] for i in chosen]


def build_tokenizer(documents: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, fewer if the documents have no more pairs to merge.

    It puts `<bos>` before a prompt, as training does before a text. Raises InputError if not even bytes have room.
    """
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIAL_TOKENS) + len(bytes_)
    if vocab_size < least:
        raise InputError(f"vocab_size must be at least {least}, for the bytes and special tokens, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(SPECIAL_TOKENS.values())
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=bytes_, show_progress=False
        ),
    )
    start = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"separator_pattern is no regular expression: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # `prepare` has the defaults
    )
    parser.add_argument("--train", type=Path, required=True, help="text file of documents")
    parser.add_argument("--valid", type=Path, help="text file whose documents are all held out, beside others")
    parser.add_argument("--output", type=Path, required=True, help="folder for tokenizer and data")
    parser.add_argument("--separator_pattern", help="regular expression of the lines between documents")
    parser.add_argument("--vocab_size", type=int, help="most tokens (default: 2048)")
    parser.add_argument("--held_out", type=int, help="documents to hold out of --train, at random (default: 2000)")
    parser.add_argument(
        "--min_tokens",
        type=int,
        help="drop shorter held-out documents (default: 80, the study's 16 of prompt and 64 that MAUVE compares)",
    )
    parser.add_argument("--seed", type=int, help="of the choice (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
