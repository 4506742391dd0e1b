"""What is asked of vLLM, and what it gives: plain values, the same for an engine in this process and for servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..sampling import SamplingConfig

FORBID = -100.0
"""vLLM's least logit bias: e^-100 of a probability is none in float32."""


@dataclass(frozen=True)
class Request:
    """Go on from a string until a deletion, the end, or so many tokens."""

    row: int
    """Whose string it is."""
    token_ids: tuple[int, ...]
    """Prompt and surviving completion."""
    seed: int
    """Of this request alone: the same seed for a string that is asked again would replay the same noise."""
    max_tokens: int
    forbidden: tuple[int, ...]
    """Actions that must not be taken, at any of these tokens."""
    tells_deletions: bool
    """Whether to tell how likely deletions are: where one is illegal, the others' probabilities follow from that."""


@dataclass(frozen=True)
class Answer:
    """What vLLM sampled."""

    row: int
    token_ids: tuple[int, ...]
    """The tokens in turn; a token that stops (`<eos>`, a deletion, the user's stop tokens) is the last."""
    log_probs: tuple[float, ...]
    """Of each under the raw softmax over the whole vocabulary."""
    deletion_log_probs: tuple[tuple[float, ...], ...]
    """For each token, the same of every deletion at its state, in the order of the action space. Of no meaning if they
    were not asked for."""
    versions: tuple[str, ...] = ()
    """The labels of the weights that sampled them."""


class Backend(Protocol):
    """Something that runs requests side by side."""

    concurrency: int
    """Requests that it takes at a time."""
    max_length: int | None
    """Most tokens of prompt and completion together, if that is known."""

    def open(self, config: SamplingConfig, stops: tuple[int, ...], deletions: tuple[int, ...]) -> None:
        """Get ready to sample with these knobs: `stops` end a request, how likely `deletions` are is told."""
        ...

    def submit(self, request: Request) -> None:
        """Start a request."""
        ...

    def poll(self) -> list[Answer]:
        """Wait until some requests are answered, at least one. Raises InputError if none can be any more."""
        ...

    def load(self, folder: str, version: str) -> None:
        """Take over the weights in a folder, label them, and forget all keys and values of others.

        Nothing may be under way.
        """
        ...

    def expect(self, folder: str, version: str) -> None:
        """As `load`, where somebody else has done it, and answers of other weights are none."""
        ...

    def abort(self) -> None:
        """Drop all that is under way."""
        ...
