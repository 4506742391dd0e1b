"""`sequencematch generate`: complete a prompt; deleted tokens are shown struck through, live."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..data import start_token
from ..errors import InputError
from ..evaluation import Transcript, transcribe
from ..reporting import STYLES
from ..rollouts import End, Event, TextStream, uninterrupted
from .sampling import Parser, add_sampling_flags, requested_engine, sampling_config


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
    parser.add_argument(
        "--hold_back",
        type=int,
        metavar="N",
        help="show plain text, each token once N later actions have not deleted it; 0 shows it at once and erases it",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each completion")
    add_sampling_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.num_generations < 1:
        raise InputError(f"num_generations must be at least 1, not {arguments.num_generations}")
    engine, tokenizer = requested_engine(arguments.model, arguments)
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
        rollouts = engine.rollout(prompts, config)
        for rollout in rollouts:
            print(json.dumps(_as_json(rollout, tokenizer, engine.space), ensure_ascii=False))
        uninterrupted(rollouts)
        return
    views: list[_History | _Plain]
    if arguments.hold_back is None:
        views = [_History(tokenizer, engine.space) for _ in prompts]
    else:
        views = [_Plain(tokenizer, arguments.hold_back) for _ in prompts]
    _show(engine.stream(prompts, config), arguments.prompt, views)


class _History:
    """Everything that was written, what was deleted struck through."""

    def __init__(self, tokenizer, space) -> None:
        self.transcript = Transcript(tokenizer, space)

    def feed(self, event: Event) -> None:
        if not isinstance(event, End):
            self.transcript.add(event.token_id)
        elif event.rollout.trajectory.terminated:
            self.transcript.add(int(event.rollout.trajectory.actions[-1]))

    @property
    def styled(self) -> list[tuple[str, str]]:
        return [(piece.text, STYLES[piece.fate]) for piece in self.transcript.pieces]


class _Plain:
    """The text as it stands."""

    def __init__(self, tokenizer, hold_back: int) -> None:
        self.stream = TextStream(tokenizer, hold_back)

    def feed(self, event: Event) -> None:
        self.stream.feed(event)

    @property
    def styled(self) -> list[tuple[str, str]]:
        return [(self.stream.text, "")]


def _show(events: Iterator[Event], prompt: str, views: Sequence[_History | _Plain]) -> None:
    """Show completions live, and leave them printed, also those that an interrupt has cut."""

    def render() -> Text:
        return Text("\n").join([Text.assemble((prompt, "bold"), *view.styled) for view in views])

    console = Console()
    try:
        with Live(render(), console=console, auto_refresh=False, transient=True) as live:
            for event in events:
                views[event.index].feed(event)
                live.update(render(), refresh=True)
    finally:
        console.print(render())


def _as_json(rollout, tokenizer, space) -> dict:
    return {
        "completion": tokenizer.decode(rollout.completion),
        "completion_ids": list(rollout.completion),
        "actions": rollout.trajectory.actions.tolist(),
        "log_probs": [round(float(value), 6) for value in rollout.log_probs],
        "transcript": transcribe(rollout.trajectory.actions.tolist(), tokenizer, space),
        "finish_reason": rollout.finish_reason,
    }
