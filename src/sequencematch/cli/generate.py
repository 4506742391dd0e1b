"""`sequencematch generate`: complete a prompt; deleted tokens are shown struck through, live."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..data import start_token
from ..errors import InputError
from ..evaluation import Transcript, transcribe
from .sampling import Parser, add_sampling_flags, load_engine, sampling_config

STYLES = {"kept": "", "deleted": "strike red", "deletion": "dim red", "end": "dim"}


def run(argv: Sequence[str]) -> None:
    """Sample completions of one prompt."""
    parser = Parser(prog="sequencematch generate", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or id of a trained model")
    parser.add_argument("--prompt", required=True, help="the text to complete; may be empty")
    parser.add_argument("--num_generations", type=int, default=1, help="completions to sample (default: 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    parser.add_argument(
        "--retry", default="resample", choices=("resample", "exclude"), help="exclude never repeats itself"
    )
    parser.add_argument("--no_backspace", action="store_true", help="forbid deletions")
    parser.add_argument("--json", action="store_true", help="one JSON object for each completion")
    add_sampling_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.num_generations < 1:
        raise InputError(f"num_generations must be at least 1, not {arguments.num_generations}")
    engine, tokenizer = load_engine(arguments.model)
    prompt = tokenizer(arguments.prompt)["input_ids"] or [start_token(tokenizer)]
    prompts = [prompt] * arguments.num_generations
    config = sampling_config(
        arguments,
        engine,
        prompts,
        temperature=arguments.temperature,
        retry=arguments.retry,
        allow_backspace=not arguments.no_backspace,
    )
    if arguments.json:
        for rollout in engine.rollout(prompts, config):
            print(json.dumps(_as_json(rollout, tokenizer, engine.space), ensure_ascii=False))
    else:
        _show(engine, tokenizer, arguments.prompt, prompts, config)


def _show(engine, tokenizer, prompt: str, prompts: list[list[int]], config) -> None:
    transcripts = [Transcript(tokenizer, engine.space) for _ in prompts]

    def render() -> Text:
        lines = [Text.assemble((prompt, "bold"), *_styled(transcript)) for transcript in transcripts]
        return Text("\n").join(lines)

    console = Console()
    with Live(render(), console=console, auto_refresh=False, transient=True) as live:

        def on_action(index: int, action: int) -> None:
            transcripts[index].add(action)
            live.update(render(), refresh=True)

        engine.rollout(prompts, config, on_action=on_action)
    console.print(render())


def _styled(transcript: Transcript) -> list[tuple[str, str]]:
    return [(piece.text, STYLES[piece.fate]) for piece in transcript.pieces]


def _as_json(rollout, tokenizer, space) -> dict:
    return {
        "completion": tokenizer.decode(rollout.completion),
        "completion_ids": list(rollout.completion),
        "actions": rollout.trajectory.actions.tolist(),
        "log_probs": [round(float(value), 6) for value in rollout.log_probs],
        "transcript": transcribe(rollout.trajectory.actions.tolist(), tokenizer, space),
        "finish_reason": rollout.finish_reason,
    }
