"""Options that change a tokenizer before it is used: its eos and padding tokens, its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATE_FILES = (".jinja", ".j2")


def apply_tokenizer_options(
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos_token: str | None = None,
    pad_token: str | None = None,
    chat_template_path: str | None = None,
) -> None:
    """Set the tokenizer's special tokens and chat template where they are given; all of them, or none on an error.

    Args:
        tokenizer: changed in place.
        eos_token: the token that ends a completion.
        pad_token: the padding token.
        chat_template_path: a Jinja file (`.jinja` or `.j2`), or a folder or hub id whose tokenizer has a template. No
            token is added: the markers that the template writes are best tokens of this tokenizer.

    Raises:
        InputError: a token that is not in the vocabulary, or no chat template there.
    """
    tokens = {"eos_token": eos_token, "pad_token": pad_token}
    given = {name: token for name, token in tokens.items() if token is not None}
    vocabulary = tokenizer.get_vocab() if given else {}
    for name, token in given.items():
        if token not in vocabulary:
            raise InputError(f"{name} {token!r} is not in the tokenizer's vocabulary; name one of its tokens")
    template = None if chat_template_path is None else _read_template(chat_template_path)
    for name, token in given.items():
        setattr(tokenizer, name, token)
    if template is not None:
        tokenizer.chat_template = template


def _read_template(path: str) -> str:
    if path.endswith(_TEMPLATE_FILES):
        try:
            template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the chat template '{path}' cannot be read: {reason_of(error)}") from error
        if not template.strip():
            raise InputError(f"the chat template '{path}' is empty; give a file with a Jinja template")
        return template
    from transformers import AutoTokenizer

    try:
        source = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the loaders raise many kinds; each means that nothing usable is there
        raise InputError(
            f"no chat template can be loaded from '{path}': {reason_of(error)}; chat_template_path is a .jinja file, "
            "or a folder or id of a tokenizer"
        ) from error
    if not source.chat_template:
        raise InputError(f"the tokenizer of '{path}' has no chat template; name another in chat_template_path")
    return source.get_chat_template()
