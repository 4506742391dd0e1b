"""A request as vLLM's sampling parameters, and its logprobs as ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..sampling import SamplingConfig
from .protocol import FORBID, Answer, Request


@dataclass(frozen=True)
class Knobs:
    """What all requests of a call have in common."""

    config: SamplingConfig
    stops: tuple[int, ...]
    """Tokens that end a request."""
    deletions: tuple[int, ...]

    def parameters(self, request: Request) -> dict[str, Any]:
        """vLLM's `SamplingParams` for one request, as plain values."""
        config = self.config
        bias = {token: max(FORBID, value) for token, value in config.logit_bias.items()}
        if config.backspace_logit_bias:
            bias |= {token: bias.get(token, 0.0) + config.backspace_logit_bias for token in self.deletions}
        bias |= dict.fromkeys(request.forbidden, FORBID)
        found: dict[str, Any] = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "min_p": config.min_p,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
            "stop_token_ids": list(self.stops),
            "ignore_eos": True,  # it is a stop token like the others, whatever the model's configuration says
            "detokenize": False,
            "logprobs": 0,
        }
        if request.tells_deletions:
            # The server tells as many as there are here, the sampled token first: one more, which is not read.
            told = [*self.deletions, self.stops[0]]
            found |= {"logprobs": len(told), "logprob_token_ids": told}
        if bias:
            found["logit_bias"] = bias
        return found

    def answer(
        self, row: int, token_ids: Sequence[int], log_probs: Iterable[dict[int, float]], versions: Iterable[str] = ()
    ) -> Answer:
        """What was sampled, from the tokens and for each of them `token -> log-probability`."""
        tokens, found = tuple(token_ids), list(log_probs)
        return Answer(
            row,
            tokens,
            tuple(at[token] for token, at in zip(tokens, found, strict=True)),
            tuple(tuple(at.get(deletion, -math.inf) for deletion in self.deletions) for at in found),
            tuple(versions),
        )
