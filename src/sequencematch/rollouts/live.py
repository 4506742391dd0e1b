"""A streamer for `model.generate` that can take back what it has shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from .events import Append, Delete
from .streaming import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RetractingTextStreamer(BaseStreamer):
    """Shows a text in the terminal while it is generated, and erases from it what the model deletes.

        model.generate(**inputs, custom_generate=backspace_generate, streamer=RetractingTextStreamer(tokenizer))

    Where the output is no terminal, it prints the text when it is complete.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        skip_prompt: bool = False,
        hold_back: int = 0,
        console: Console | None = None,
    ) -> None:
        """Start with nothing shown.

        Args:
            tokenizer: decodes the tokens.
            skip_prompt: whether the prompt is left out.
            hold_back: a token is shown once so many later actions have not deleted it; see `TextStream`.
            console: where; standard output if not given.
        """
        self._tokenizer = tokenizer
        self._skip_prompt = skip_prompt
        self._hold_back = hold_back
        self._console = console or Console()
        self._live: Live | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt, int64 [1, L], the first time, then an appended token at a time, int64 [1]."""
        if self._live is None:
            prompt = self._tokenizer.decode(value.flatten().tolist(), skip_special_tokens=True)
            self._prompt = "" if self._skip_prompt else str(prompt)
            self._stream = TextStream(self._tokenizer, self._hold_back)
            self._live = Live(self._shown(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            return
        for token in value.flatten().tolist():
            self._stream.feed(Append(0, token))
        self._live.update(self._shown(), refresh=True)

    def retract(self, count: int) -> None:
        """Take the last `count` tokens back."""
        assert self._live is not None
        self._stream.feed(Delete(0, -1, count))
        self._live.update(self._shown(), refresh=True)

    def end(self) -> None:
        """Leave the whole text printed, and be ready for another."""
        assert self._live is not None
        self._live.stop()
        self._live = None
        self._stream.finish()
        self._console.print(self._shown())

    def _shown(self) -> Text:
        return Text.assemble((self._prompt, "bold"), self._stream.text)
