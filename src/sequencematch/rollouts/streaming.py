"""The text of a completion while it is sampled: what to append to what is shown, and what to erase again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError
from .events import Append, Delete, End

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What bytes that are no character, or not a whole one yet, are decoded to."""
WINDOW = 16
"""Tokens in the window before it is moved: more than a character has, which is one for each of 4 bytes at most."""


@dataclass(frozen=True, slots=True)
class TextChange:
    """How the shown text changes: first erase so many characters at its end, then append."""

    erase: int
    """Characters, as `len` counts them."""
    append: str
    """The text to append."""

    def apply(self, text: str) -> str:
        """The shown text after the change, given that before it; InputError if there is less than is to be erased."""
        if self.erase > len(text):
            raise InputError(f"a change that erases {self.erase} characters does not fit a text of {len(text)}")
        return text[: len(text) - self.erase] + self.append


class _State(NamedTuple):
    """Where decoding stands after a shown token, and what showing it did."""

    end: int = 0  # the number of `TextStream._ids`
    start: int = 0  # of them, where the window begins: the tokens that are decoded together with the next one
    read: int = 0  # where it is moved to: right after the last token that showed something, or one shortly before it
    window: str = ""  # the shown part of the window's text
    erased: str = ""  # what showing the token erased: nothing if tokens decode alike whatever follows
    appended: int = 0  # characters that it then appended


class TextStream:
    """The text of one completion while it is written and taken back.

    Shown is the text of the surviving tokens, without U+FFFD at its end: there a character may still be incomplete.
    With `hold_back=0` a token is shown at once, and erased when it is deleted; with `hold_back=n` it is shown when n
    later actions (appended tokens, deletions) have not deleted it. After `End` it is the whole text, which is
    `tokenizer.decode(completion, skip_special_tokens=..., clean_up_tokenization_spaces=False)`.

    An event costs the same after many tokens as after few: it decodes the last few of them, or returns to an earlier
    state. Only where later tokens change how earlier ones decode (byte fallback does so for bytes that are not UTF-8)
    is the whole completion decoded again.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, hold_back: int = 0, skip_special_tokens: bool = True
    ) -> None:
        """Start with no text; InputError if `hold_back`, a number of actions, is not whole and at least 0."""
        if not isinstance(hold_back, int) or isinstance(hold_back, bool) or hold_back < 0:
            raise InputError(f"hold_back must be a whole number of at least 0, not {hold_back!r}")
        self._tokenizer: Any = tokenizer
        self._hold_back = hold_back
        self._skip_special_tokens = skip_special_tokens
        self._index: int | None = None
        self._ended = False
        self._actions = 0
        self._tokens: list[tuple[int, int]] = []  # that survive, each with the number of the action that appended it
        self._states = [_State()]  # before the first token, and after each shown one
        self._ids: list[int] = []  # of the shown tokens that have text
        self._characters: list[str] = []  # shown; in a list, as a long string would be copied at each change
        self._kept = 0  # how many of them the present event has left alone

    @property
    def text(self) -> str:
        """What is shown now."""
        return "".join(self._characters)

    def feed(self, event: Append | Delete | End) -> TextChange:
        """Take the rollout's next event; returns how the shown text changes: `TextChange(0, "")` if it does not.

        Raises InputError, and changes nothing, for an event after `End`, for one with another index than the first, and
        for a deletion of more tokens than there are.
        """
        if self._ended:
            raise InputError("nothing can follow the end of a rollout; use a new TextStream for each")
        if self._index not in (None, event.index):
            raise InputError(f"this is the text of rollout {self._index}, not {event.index}; use a TextStream for each")
        if isinstance(event, Delete) and not 1 <= event.count <= len(self._tokens):
            raise InputError(f"{event.count} tokens cannot be deleted from a completion of {len(self._tokens)}")
        self._index = event.index
        if isinstance(event, End):
            return self.finish()
        self._actions += 1
        before = self._kept = len(self._characters)
        if isinstance(event, Append):
            self._tokens.append((event.token_id, self._actions))
        else:
            self._delete(event.count)
        shown = len(self._states) - 1
        # No other token becomes old enough at the same time: no two were appended by the same action.
        if shown < len(self._tokens) and self._tokens[shown][1] <= self._actions - self._hold_back:
            self._states.append(self._show(self._tokens[shown][0]))
        return TextChange(before - self._kept, "".join(self._characters[self._kept :]))

    def finish(self) -> TextChange:
        """Show everything that is left, as `End` does; nothing can be fed any more."""
        before = self._kept = len(self._characters)
        if self._ended:
            return TextChange(0, "")
        self._ended = True
        self._ids += [token_id for token_id, _ in self._tokens[len(self._states) - 1 :]]
        self._revise(self._states[-1].window, self._decode(self._ids[self._states[-1].start :]), "")
        return TextChange(before - self._kept, "".join(self._characters[self._kept :]))

    def _delete(self, count: int) -> None:
        del self._tokens[-count:]
        while len(self._states) > len(self._tokens) + 1:
            undone = self._states.pop()
            self._write(undone.appended, undone.erased)
        del self._ids[self._states[-1].end :]

    def _show(self, token_id: int) -> _State:
        self._ids.append(token_id)
        last = self._states[-1]._replace(erased="", appended=0)
        state = self._extend(last._replace(end=len(self._ids)))
        # A token without text (a special one) would only fill the window. Twice, as a text's first space may be lost.
        if not (state.erased or state.appended or self._decode([token_id, token_id])):
            self._ids.pop()
            return last
        return state

    def _extend(self, state: _State) -> _State:
        """Show what can be shown of the last token; `state` is that before it."""
        if state.end - state.read > WINDOW and not self._decode(self._ids[-WINDOW:]).strip(REPLACEMENT):
            return state  # a long run of bytes that are no characters, in which the window is not moved
        text = self._decode(self._ids[state.start :])
        shown = text.rstrip(REPLACEMENT)
        if shown != text and not shown.startswith(state.window):
            return state  # byte fallback: an incomplete character makes those right before it U+FFFD until it is whole
        erased, appended = self._revise(state.window, shown, REPLACEMENT)
        state = state._replace(window=shown, erased=erased, appended=appended)
        if not appended:
            return state
        if state.end - state.start > WINDOW:
            window = self._decode(self._ids[state.read :]).rstrip(REPLACEMENT)
            if not window:
                return state  # it would begin inside the last character, or with a space that is dropped there
            state = state._replace(start=state.read, window=window)
        return state._replace(read=state.end)

    def _revise(self, old: str, new: str, hidden: str) -> tuple[str, int]:
        """Show `new` in place of `old`, the end of what is shown; returns the text erased and the number appended."""
        common = len(old)
        if not new.startswith(old):
            old, new = self.text, self._decode(self._ids).rstrip(hidden)
            common = sum(takewhile(bool, map(eq, old, new)))
        return self._write(len(old) - common, new[common:]), len(new) - common

    def _write(self, erase: int, append: str) -> str:
        length = len(self._characters) - erase
        erased = "".join(self._characters[length:])
        self._characters[length:] = append
        self._kept = min(self._kept, length)
        return erased

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(
            token_ids, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
