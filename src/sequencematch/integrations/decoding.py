"""What a task of the lm-evaluation-harness wants generated, as sampling in the token MDP. Needs `lm_eval`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from ..errors import InputError
from ..rollouts import Retry, SamplingConfig

FILTERS = ("top_k", "top_p", "min_p")


def decoding(
    gen_kwargs: Mapping[str, Any], base: SamplingConfig, retry: Retry | None, end: str, length: int
) -> SamplingConfig:
    """How to sample by a task's `generation_kwargs`, as the harness's `hf` understands them.

    Greedy, unless `do_sample` is true or `temperature` positive. Sampling has temperature 1 and no filter unless told
    otherwise.

    Args:
        gen_kwargs: `until`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `max_gen_toks` (or one of its other
            names).
        base: everything else.
        retry: None for `exclude` if greedy, and else `resample`.
        end: the text of `<eos>`, a stop string like those of `until`.
        length: `max_gen_toks` if the task does not say.

    Raises InputError for any other option, and for impossible values.
    """
    options: dict[str, Any] = {**normalize_gen_kwargs(dict(gen_kwargs), length)}
    until = handle_stop_sequences(options.pop("until"), eos=end)
    length = options.pop("max_gen_toks")
    temperature = float(options.pop("temperature", 1.0)) * bool(options.pop("do_sample"))
    filters = {name: options.pop(name) for name in FILTERS if options.get(name) is not None}
    if options.pop("num_beams", 1) != 1 or any(value is not None for value in options.values()):
        raise InputError(
            f"the generation options {dict(gen_kwargs)} hold more than until, do_sample, temperature, "
            f"{', '.join(FILTERS)} and max_gen_toks; remove the rest from the task or --gen_kwargs"
        )
    return replace(
        base,
        temperature=temperature,
        retry=retry or ("resample" if temperature else "exclude"),
        max_completion_length=length,
        stop_strings=tuple(text for text in until if text),
        **filters,
    )


def final_text(tokenizer: Any, tokens: Sequence[int], config: SamplingConfig, think_end: str | int | None) -> str:
    """A surviving completion up to its first stop string; of one that thinks aloud, what follows `think_end`."""
    thinks = isinstance(think_end, int) and think_end in tokens
    if thinks:
        tokens = tokens[len(tokens) - tokens[::-1].index(think_end) :]  # type: ignore[arg-type]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    mark = think_end if isinstance(think_end, str) else None
    return postprocess_generated_text(text.lstrip() if thinks else text, list(config.stop_strings), mark)


def seeds_of(contexts: Sequence[str]) -> list[int]:
    """A seed for each prompt: of torch's global seed, which the harness sets, its text, and how often that came up."""
    asked: Counter[str] = Counter()
    seeds = []
    for context in contexts:
        key = f"{torch.initial_seed()} {asked[context]} {context}"
        seeds.append(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))
        asked[context] += 1
    return seeds
