"""Flags that every command which samples has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import InputError
from ..rollouts import ENGINES, SamplingConfig, load_engine

DEFAULT_LENGTH = 256


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints become one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError in place of printing the usage and exiting."""
        raise InputError(f"{message}; see {self.prog} --help")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `SamplingConfig`."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max_completion_length", type=int, help="most surviving tokens (default: 256, or what the model has room for)"
    )
    group.add_argument("--max_actions", type=int, help="most actions, deletions included (default: derived)")
    group.add_argument("--max_deletions", type=int, help="most deletions (default: no limit)")
    group.add_argument("--top_k", type=int, default=0, help="sample from the k likeliest actions (default: all)")
    group.add_argument("--top_p", type=float, default=1.0, help="sample from the likeliest of this mass (default: 1)")
    group.add_argument("--min_p", type=float, default=0.0, help="drop actions so many times less likely than the best")
    group.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="end where the text holds one of these")
    group.add_argument(
        "--backspace_logit_bias", type=float, default=0.0, help="added to deletions' logits (default: 0)"
    )
    group.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    group.add_argument("--engine", choices=ENGINES, default="hf", help="what samples: this library, or vLLM")
    group.add_argument(
        "--vllm_server_base_url", help="sample on vLLM servers that serve the model: addresses, separated by commas"
    )


def sampling_config(
    arguments: argparse.Namespace, engine: Any, prompts: Sequence[Sequence[int]], **changes: Any
) -> SamplingConfig:
    """The `SamplingConfig` that parsed flags describe for these prompts, with `changes`."""
    length = arguments.max_completion_length
    if length is None:
        from ..models import max_positions

        positions = max_positions(engine.model)
        room = DEFAULT_LENGTH if positions is None else positions - max(len(prompt) for prompt in prompts)
        length = max(1, min(DEFAULT_LENGTH, room))
    names = ("max_actions", "max_deletions", "top_k", "top_p", "min_p", "backspace_logit_bias", "seed")
    options = {name: getattr(arguments, name) for name in names}
    return SamplingConfig(max_completion_length=length, stop_strings=tuple(arguments.stop), **options, **changes)


def on_vllm(arguments: argparse.Namespace) -> bool:
    """Whether parsed flags ask for vLLM, in this process or on servers."""
    return arguments.engine == "vllm" or bool(arguments.vllm_server_base_url)


def requested_engine(folder: str, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The engine that parsed flags ask for, with the saved model in its `model`, and the tokenizer."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    engine = "vllm" if on_vllm(arguments) else "hf"
    return load_engine(folder, engine, base_urls=arguments.vllm_server_base_url)
