"""One training run of the demo and its evaluation, in a worker process of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import disable_progress_bars as disable_datasets_bars
from transformers import PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from ..evaluation import MODES, evaluate_mode, transcribe
from ..tasks import split
from ..training import SequenceMatchTrainer
from ..training.run import Run, make_task, make_trainer
from .recipes import Recipe

TRANSCRIPTS = 12
"""Completions of each arm that the report shows, for each of two ways of decoding."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    recipe: Recipe
    """The task."""
    run: str
    """An arm's name, or `pretrain`."""
    folder: Path
    """The demo's output folder."""

    @property
    def name(self) -> str:
        """What the progress bar calls it."""
        return f"{self.recipe.name}/{self.run}"


class _Report(TrainerCallback):
    """Tells the main process how far training is."""

    def __init__(self, name: str, queue: Any) -> None:
        self.name = name
        self.queue = queue

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.queue.put((self.name, state.global_step, state.max_steps))


def run_job(job: Job, queue: Any) -> dict[str, Any]:
    """Train one arm, save it with its configuration, and evaluate it. Returns an arm's entry of results.json."""
    options = job.recipe.options(job.run, job.folder)
    run = Run.from_options(options)
    trainer = make_trainer(run)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(job.name, queue))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    (Path(options["output_dir"]) / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
    result = {"seconds": seconds, "steps": trainer.state.global_step, "curve": _curve(trainer)}
    return result if job.run == "pretrain" else result | _evaluate(trainer, run)


def use_one_thread() -> None:
    """Start a worker: one thread, so that workers do not fight over the cores, and no bars beside the demo's own."""
    torch.set_num_threads(1)
    disable_datasets_bars()
    disable_transformers_bars()


def _curve(trainer: SequenceMatchTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _evaluate(trainer: SequenceMatchTrainer, run: Run) -> dict[str, Any]:
    task = make_task(run.data)
    assert task is not None
    rows = split(task, 0, run.data.test_size, run.data.task_seed)["test"].to_list()
    tokenizer: Any = trainer.processing_class
    engine, space, config = trainer.batches.engine, trainer.space, run.training.sampling()
    result: dict[str, Any] = {"deletions": run.training.deletions, "transcripts": {}}

    def is_correct(prompt: str, expected: str, completion: str) -> bool:
        return task.is_correct(prompt, completion)

    for mode in MODES:
        score, rollouts = evaluate_mode(engine, tokenizer, rows, is_correct, config, mode)
        result[mode] = score.as_dict()
        result["transcripts"][mode] = [
            {
                **row,
                "expected": row["completion"],
                "completion": (text := tokenizer.decode(list(rollout.completion))),
                "correct": rollout.trajectory.terminated and task.is_correct(row["prompt"], text),
                "pieces": transcribe(rollout.trajectory.actions.tolist(), tokenizer, space),
            }
            for row, rollout in zip(rows[:TRANSCRIPTS], rollouts, strict=False)
        ]
    return result
