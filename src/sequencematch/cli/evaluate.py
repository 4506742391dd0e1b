"""`sequencematch evaluate`: accuracy with a 95% interval, deletions and truncation, for several ways of decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..data import load_splits
from ..errors import InputError
from ..evaluation import MODES, Score, checked_rows, evaluate_mode
from ..tasks import get_task, split
from ..training.config import parse_mapping
from .sampling import Parser, add_sampling_flags, load_engine, sampling_config


def run(argv: Sequence[str]) -> None:
    """Evaluate a model on a task's held-out questions or a data set's `prompt` and `completion` columns."""
    parser = Parser(prog="sequencematch evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or id of a trained model")
    parser.add_argument("--dataset_name", help="id, folder or file with prompt and completion columns (exact match)")
    parser.add_argument("--dataset_split", help="its split (default: test, or train if that is the only one)")
    parser.add_argument("--task", help="built-in task: star or arithmetic")
    parser.add_argument("--task_options", default="{}", help="options of the task as JSON")
    parser.add_argument("--task_seed", type=int, default=0, help="seed of its questions (default: 0, as in training)")
    parser.add_argument("--test_size", type=int, default=500, help="questions of the task (default: 500)")
    parser.add_argument(
        "--modes", nargs="+", default=["sampled", "greedy"], choices=list(MODES), help="ways of decoding"
    )
    parser.add_argument("--output", help="also write the JSON to this file")
    add_sampling_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.output and not Path(arguments.output).parent.is_dir():
        raise InputError(f"there is no folder for '{arguments.output}'; make it first")
    rows, is_correct = _questions(arguments)
    engine, tokenizer = load_engine(arguments.model)
    console = Console(stderr=True)
    prompts = tokenizer([row["prompt"] for row in checked_rows(rows)])["input_ids"]
    config = sampling_config(arguments, engine, prompts)
    with Progress(console=console) as progress:
        scores = {
            mode: evaluate_mode(engine, tokenizer, rows, is_correct, config, mode)[0]
            for mode in progress.track(arguments.modes, description="Evaluating")
        }
    console.print(_table(scores))
    text = json.dumps({"model": arguments.model, **{mode: score.as_dict() for mode, score in scores.items()}}, indent=2)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")
    print(text)


def _questions(arguments):
    if bool(arguments.task) == bool(arguments.dataset_name):
        raise InputError("name what to evaluate on: either --task or --dataset_name")
    if arguments.task:
        options = parse_mapping(arguments.task_options, "--task_options")
        task = get_task(arguments.task, **options)
        rows = split(task, 0, arguments.test_size, arguments.task_seed)["test"].to_list()
        return rows, lambda prompt, _, completion: task.is_correct(prompt, completion)
    splits = load_splits(arguments.dataset_name)
    name = arguments.dataset_split or ("test" if "test" in splits else "train")
    if name not in splits:
        raise InputError(f"the data set has the splits {', '.join(splits)}; set --dataset_split to one of them")
    return splits[name].to_list(), lambda _, expected, completion: completion == expected


def _table(scores: dict[str, Score]) -> Table:
    table = Table("decoding", "accuracy", "95% interval", "n", "deletions", "run", "actions", "cut")
    for mode, s in scores.items():
        interval = f"{s.low:.3f} to {s.high:.3f}"
        numbers = (f"{s.deletion_rate:.3f}", f"{s.mean_run:.2f}", f"{s.actions:.2f}", f"{s.truncated:.3f}")
        table.add_row(mode, f"{s.accuracy:.3f}", interval, str(s.n), *numbers)
    return table
