"""Completions as people read them: every token in the order it was written, with what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..mdp import ActionSpace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fate = Literal["kept", "deleted", "deletion", "end"]


@dataclass
class Piece:
    """One action of a transcript."""

    text: str
    """The token's text, or the deletion's or end's name."""
    fate: Fate
    """Kept to the end, deleted later, a deletion itself, or `<eos>`."""


class Transcript:
    """The pieces of a completion, built one action at a time (for live display) or all at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, space: ActionSpace) -> None:
        self.pieces: list[Piece] = []
        self._tokenizer = tokenizer
        self._space = space
        self._standing: list[Piece] = []

    def add(self, action: int) -> None:
        """Take one action; a deletion marks the tokens that it deletes."""
        text = str(self._tokenizer.decode([action]))
        if action in self._space.by_token:
            landing = self._space.next_length(action, len(self._standing))
            for piece in self._standing[landing:]:
                piece.fate = "deleted"
            del self._standing[landing:]
            self.pieces.append(Piece(text, "deletion"))
        elif action == self._space.eos_token_id:
            self.pieces.append(Piece(text, "end"))
        else:
            piece = Piece(text, "kept")
            self.pieces.append(piece)
            self._standing.append(piece)


def transcribe(actions: Sequence[int], tokenizer: PreTrainedTokenizerBase, space: ActionSpace) -> list[dict[str, str]]:
    """The pieces of a whole trajectory, as plain dictionaries with `text` and `fate`."""
    transcript = Transcript(tokenizer, space)
    for action in actions:
        transcript.add(int(action))
    return [{"text": piece.text, "fate": piece.fate} for piece in transcript.pieces]
