"""The text of a completion while it is sampled: what to append to what is shown, and what to erase again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .events import Append, Delete, End

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What bytes that are no character, or not yet a whole one, are decoded to."""
WINDOW = 16
"""Tokens after which the window is moved: more than those of a character, at most one for each of 4 bytes."""


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


@dataclass(frozen=True, slots=True)
class _State:
    """Where decoding stands after a shown token, and what showing it did. Positions are in `TextStream._ids`."""

    start: int = 0
    """Where the window begins: the tokens that are decoded together with the next one."""
    next_start: int = 0
    """Where it will begin when it is moved next."""
    end: int = 0
    """Number of tokens so far."""
    window: str = ""
    """The shown part of the window's text."""
    erased: str = ""
    """What the token erased; nothing if tokens decode alike whatever follows."""
    appended: int = 0
    """Characters that it then appended."""


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
        self._kept = 0  # how many of them the present event leaves alone

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
        self._actions += 1
        before = self._kept = len(self._characters)
        if isinstance(event, Append):
            self._tokens.append((event.token_id, self._actions))
        elif isinstance(event, Delete):
            del self._tokens[-event.count :]
            while len(self._states) > len(self._tokens) + 1:
                undone = self._states.pop()
                self._write(undone.appended, undone.erased)
            del self._ids[self._states[-1].end :]
        else:
            self._ended = True
            self._ids += [token_id for token_id, _ in self._tokens[len(self._states) - 1 :]]
            last = self._states[-1]
            self._revise(last.window, self._decode(last.start), final=True)
        # Each action has a number of its own, so only one token becomes old enough at a time.
        hidden = self._tokens[len(self._states) - 1 :][:1] if not self._ended else []
        for token_id, action in hidden:
            if action <= self._actions - self._hold_back:
                self._states.append(self._show(token_id))
        return TextChange(before - self._kept, "".join(self._characters[self._kept :]))

    def _show(self, token_id: int) -> _State:
        self._ids.append(token_id)
        last = replace(self._states[-1], erased="", appended=0)
        state = self._extend(replace(last, end=len(self._ids)))
        # Tokens without text (special ones) would only fill the window. Twice, as a text's first space may be dropped.
        if not state.appended and not self._decode_ids([token_id, token_id]):
            self._ids.pop()
            return last
        return state

    def _extend(self, state: _State) -> _State:
        """Show what can be shown of the last token's text, given the state before it."""
        full = state.end - state.start > WINDOW
        # No character ends in a long run of U+FFFD, which does not let the window move.
        if full and not self._decode(state.end - WINDOW).strip(REPLACEMENT):
            return state
        text = self._decode(state.start)
        shown = text.rstrip(REPLACEMENT)
        # Byte fallback decodes whole characters to U+FFFD too while an incomplete one follows them.
        if shown != text and not shown.startswith(state.window):
            return state
        erased, appended = self._revise(state.window, shown)
        state = replace(state, window=shown, erased=erased, appended=appended)
        if full and appended:
            text_next = self._decode(state.next_start)
            shown_next = text_next.rstrip(REPLACEMENT)
            if len(text_next) - len(shown_next) == len(text) - len(shown):  # else it would cut a character
                return replace(state, start=state.next_start, next_start=state.end, window=shown_next)
        return state
