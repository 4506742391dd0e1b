"""`sequencematch evaluate`: accuracy, deletions, text metrics and perplexity with 95% intervals, against a baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..data import load_splits
from ..errors import InputError
from ..evaluation import METRICS, MODES, Decoding, Evaluation, Subject, make_questions, measure_decoding, measure_model
from ..evaluation.statistics import adjust, paired_difference
from ..tasks import Task, get_task, split
from ..training.config import parse_mapping
from .sampling import Parser, add_sampling_flags, on_vllm, requested_engine, sampling_config

COLUMNS = ("accuracy", "deletion_rate", "mean_run", "actions", "truncated", "diversity", "entropy", "mauve")
"""Of the metrics, those that the table for people has."""


def run(argv: Sequence[str]) -> None:
    """Evaluate a model on a task's held-out questions or a data set: prompts and completions, messages or texts."""
    arguments = _parser().parse_args(argv)
    if arguments.output and not Path(arguments.output).parent.is_dir():
        raise InputError(f"there is no folder for '{arguments.output}'; make it first")
    ways = {mode: MODES[mode] for mode in arguments.modes} | parse_mapping(arguments.decoding, "--decoding")
    decodings = {name: Decoding.of(given) for name, given in ways.items()}
    for decoding in decodings.values():
        decoding.check_engine("vllm" if on_vllm(arguments) else "hf")
    dataset, task = _held_out(arguments)
    evaluation = Evaluation(
        tuple(arguments.metrics),
        prompt_tokens=arguments.prompt_tokens,
        mauve_length=arguments.mauve_length,
        featurizer=arguments.featurizer,
        planted=arguments.planted,
        transcripts=0,
    )
    console = Console(stderr=True)
    models = [arguments.model, *([arguments.baseline] if arguments.baseline else [])]
    found = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("Evaluating", total=len(models) * (1 + len(decodings)))
        for model in models:
            subject = _subject(model, arguments, dataset, task)
            found[model] = {"model": measure_model(subject, evaluation)}
            progress.advance(bar)
            for name, decoding in decodings.items():
                found[model][name] = measure_decoding(subject, decoding, evaluation)
                progress.advance(bar)
    comparisons = _compared(found, decodings) if len(found) > 1 and "accuracy" in arguments.metrics else []
    for table in _tables(found, comparisons):
        console.print(table)
    report = {"models": {model: _numbers(parts) for model, parts in found.items()}, "comparisons": comparisons}
    text = json.dumps(report, indent=2)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")
    print(text)


def _parser() -> Parser:
    parser = Parser(prog="sequencematch evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or id of a trained model")
    parser.add_argument("--baseline", help="folder or id of another one, to compare it with on the same prompts")
    parser.add_argument("--dataset_name", help="id, folder or file: prompts and completions, conversations or texts")
    parser.add_argument("--dataset_split", help="its split (default: test, or train if that is the only one)")
    parser.add_argument("--task", help="built-in task: star or arithmetic")
    parser.add_argument("--task_options", default="{}", help="options of the task as JSON")
    parser.add_argument("--task_seed", type=int, default=0, help="seed of its questions (default: 0, as in training)")
    parser.add_argument("--test_size", type=int, default=500, help="questions of the task (default: 500)")
    parser.add_argument(
        "--modes", nargs="*", default=["sampled", "greedy"], choices=list(MODES), help="ways of decoding"
    )
    parser.add_argument("--decoding", help='more of them, as JSON: {"hot": {"temperature": 1.5}}')
    parser.add_argument(
        "--metrics", nargs="+", default=["accuracy"], choices=list(METRICS), help="what to measure (default: accuracy)"
    )
    parser.add_argument("--prompt_tokens", type=int, help="tokens of each text that are its prompt")
    parser.add_argument("--mauve_length", type=int, default=128, help="tokens that MAUVE looks at (default: 128)")
    parser.add_argument(
        "--planted", default="uniform", choices=("uniform", "task"), help="mistakes to plant for detection"
    )
    parser.add_argument("--featurizer", help="folder or id of the model that MAUVE takes features from")
    parser.add_argument("--output", help="also write the JSON to this file")
    add_sampling_flags(parser)
    return parser


def _subject(model: str, arguments: Any, dataset: Any, task: Task | None) -> Subject:
    engine, tokenizer = requested_engine(model, arguments)
    questions = make_questions(dataset, tokenizer, engine.space, task=task, prompt_tokens=arguments.prompt_tokens)
    config = sampling_config(arguments, engine, [example.prompt_ids for example in questions.examples])
    return Subject(engine, tokenizer, questions, config, task)


def _held_out(arguments: Any) -> tuple[Any, Task | None]:
    """The questions as a data set, and the task that they are from."""
    if bool(arguments.task) == bool(arguments.dataset_name):
        raise InputError("name what to evaluate on: either --task or --dataset_name")
    if arguments.task:
        task = get_task(arguments.task, **parse_mapping(arguments.task_options, "--task_options"))
        return split(task, 0, arguments.test_size, arguments.task_seed)["test"], task
    splits: Any = load_splits(arguments.dataset_name)
    name = arguments.dataset_split or ("test" if "test" in splits else "train")
    if name not in splits:
        raise InputError(f"the data set has the splits {', '.join(splits)}; set --dataset_split to one of them")
    dataset = splits[name]
    if not {"prompt", "messages"} & set(dataset.column_names) and not arguments.prompt_tokens:
        raise InputError(
            f"the data set has no prompts but the columns {', '.join(dataset.column_names)}; give 'prompt' and "
            "'completion', or say with --prompt_tokens how many tokens of each text are its prompt"
        )
    return dataset, None


def _compared(found: Mapping[str, Mapping], decodings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model's accuracy less the baseline's, question by question."""
    model, baseline = found.values()
    rows = [
        {
            "decoding": name,
            "metric": "accuracy",
            **asdict(paired_difference(model[name]["questions"]["score"], baseline[name]["questions"]["score"])),
        }
        for name in decodings
    ]
    return [row | {"p_adjusted": p} for row, p in zip(rows, adjust([row["p"] for row in rows]), strict=True)]


def _numbers(parts: Mapping[str, Mapping]) -> dict[str, Any]:
    """What is written of a model: all but single questions."""
    keys = ("metrics", "intervals", "histograms")
    kept = {name: {key: part[key] for key in keys if part.get(key)} for name, part in parts.items()}
    return {name: part for name, part in kept.items() if part}


def _tables(found: Mapping[str, Mapping[str, Mapping]], comparisons: Sequence[Mapping]) -> list[Table]:
    parts = [(model, name, part) for model, own in found.items() for name, part in own.items() if part["metrics"]]
    names = [name for name in COLUMNS if any(name in part["metrics"] for _, _, part in parts)]
    names += [name for name in ("perplexity", "perplexity_no_deletion") if name in parts[0][2]["metrics"]]
    table = Table("model", "decoding", *names, title="means, with 95% intervals where there are any")
    for model, name, part in parts:
        table.add_row(model, "" if name == "model" else name, *(_cell(part, metric) for metric in names))
    tables = [table]
    if comparisons:
        table = Table("decoding", "accuracy less the baseline's", "95% interval", "p (adjusted)")
        for row in comparisons:
            interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
            table.add_row(row["decoding"], f"{row['difference']:+.3f}", interval, f"{row['p_adjusted']:.4f}")
        tables.append(table)
    return tables


def _cell(part: Mapping[str, Any], metric: str) -> str:
    if metric not in part["metrics"]:
        return ""
    text = f"{part['metrics'][metric]:.3f}"
    interval = part["intervals"].get(metric)
    return f"{text} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else text
