"""One training run of a study and its evaluations, kept under names that follow from what they are."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from transformers import PrinterCallback, TrainerCallback

from ..data import load_splits
from ..errors import InputError
from ..evaluation import Decoding, Evaluation, Subject, make_questions, measure_decoding, measure_model
from ..files import write_whole
from ..models import prepare_model
from ..rollouts import load_engine
from ..tasks import split
from ..training.run import Run, make_task, make_trainer
from .budget import PILOT_STEPS, Budget, with_steps
from .environment import environment

VERSION = 1
"""Raised when runs or measurements change their meaning, so that older ones are not taken for them."""

WITH_VALUES = ("sequencematch", "iql_offline")
"""Objectives that tie the values of different states to each other."""

OF_DELETIONS = ("allow_backspace", "backspace_logit_bias", "max_deletions", "retry")
"""Options of decoding that say nothing to a model without deletions."""


@dataclass(frozen=True)
class Job:
    """A run to train, if it has not been, and what to measure of it, if that has not been."""

    name: str
    """What the progress bar calls it."""
    options: Mapping[str, Any]
    """Of `sequencematch train`, seed included; without the output folder, and the folder of a checkpoint."""
    budget: Budget | None
    """None for a pretraining run, which sets its own `max_steps`."""
    start: Job | None
    """The run whose model this one starts from."""
    decodings: Mapping[str, Mapping[str, Any]]
    evaluation: Evaluation
    store: Path
    """The folder of all runs."""

    @property
    def key(self) -> str:
        """The run's address: a hash of all that decides it."""
        budget = None if self.budget is None else [self.budget.unit, self.budget.amount]
        return address([VERSION, dict(self.options), budget, None if self.start is None else self.start.key])

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.store / self.key

    @property
    def trained(self) -> bool:
        """Whether the run is complete."""
        return (self.folder / "run.json").exists()

    def evaluation_file(self, decoding: str | None) -> Path:
        """Where the measurements of one way of decoding are kept, or those of the model itself (None).

        Without deletions, ways of decoding that differ only in what becomes of deletions are one, and measured once.
        """
        how = None if decoding is None else dict(self.decodings[decoding])
        if how is not None and not self._may_delete:
            how = {name: value for name, value in how.items() if name not in OF_DELETIONS}
        return self.folder / "evaluations" / f"{address([VERSION, how, self.evaluation.as_dict()])}.json"

    @property
    def missing(self) -> list[str | None]:
        """Ways of decoding that have not been measured; None stands for the model itself."""
        wanted = [None, *self.decodings] if self.decodings else []
        first: dict[Path, str | None] = {}
        for name in wanted:
            first.setdefault(self.evaluation_file(name), name)
        return [name for file, name in first.items() if not file.exists()]

    @property
    def _may_delete(self) -> bool:
        """Whether the model may have deletions: its run adds some, or what it starts from may have them."""
        if self.options.get("deletions") != {}:
            return True
        return self.start._may_delete if self.start is not None else not self.options.get("from_scratch")

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and not self.missing

    def load_run(self) -> dict[str, Any]:
        """`steps`, `seconds`, `tokens`, `environment` and `curve` of a run that is complete."""
        return json.loads((self.folder / "run.json").read_text())

    def load_evaluation(self, decoding: str | None) -> dict[str, Any]:
        """What was measured of one way of decoding, or of the model itself (None)."""
        return json.loads(self.evaluation_file(decoding).read_text())


def address(what: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def do(jobs: Sequence[Job], queue: Any) -> None:
    """Train a run and measure whatever of it is missing. Another process that does the same is waited for.

    Args:
        jobs: of the same run, which differ in what they measure.
        queue: for progress.
    """
    job = jobs[0]
    job.store.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder.with_suffix(".lock")):
        if not job.trained:
            _train(job, queue)
        for job in jobs:
            if job.missing:
                _evaluate(job)


class _Report(TrainerCallback):
    """Tells the main process how far training is."""

    def __init__(self, name: str, queue: Any) -> None:
        self.name = name
        self.queue = queue

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.queue.put((self.name, state.global_step, state.max_steps))


def _train(job: Job, queue: Any) -> None:
    options = dict(job.options)
    if job.start is not None:
        options |= {"model_name_or_path": str(job.start.folder), "from_scratch": None}
    if job.budget is not None:
        options = with_steps(options, _steps(job, options))
    # What a killed run has left is of no use: it begins anew.
    shutil.rmtree(job.folder, ignore_errors=True)
    trainer, seconds = _fit(options, job.folder, _Report(job.name, queue))
    trainer.save_model()
    (job.folder / "config.yaml").write_text(yaml.safe_dump({**options, "output_dir": str(job.folder)}, sort_keys=False))
    totals = trainer.batches.speed.totals
    record = {
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "tokens": totals["nodes"] + totals["rollout_actions"],
        "environment": environment(),
        "curve": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    write_whole(job.folder / "run.json", json.dumps(record))


def _steps(job: Job, options: Mapping[str, Any]) -> int:
    """How many steps the budget pays for, by what a short run's cost on average."""
    assert job.budget is not None
    if job.budget.unit == "steps":
        return job.budget.steps(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer, seconds = _fit(with_steps(options, PILOT_STEPS), Path(folder))
    totals = trainer.batches.speed.totals
    spent = seconds if job.budget.unit == "seconds" else totals["nodes"] + totals["rollout_actions"]
    return job.budget.steps(spent / PILOT_STEPS)


def _fit(options: Mapping[str, Any], folder: Path, *callbacks: TrainerCallback) -> tuple[Any, float]:
    """A trained trainer, and the seconds that it took."""
    trainer = make_trainer(Run.from_options({**options, "output_dir": str(folder)}))
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    start = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - start


def _evaluate(job: Job) -> None:
    run = Run.from_options({**job.options, "output_dir": str(job.folder)})
    engine, tokenizer = load_engine(str(job.folder), job.evaluation.engine, run.training.generation_batch_size)
    prepare_model(engine.model, run.training.tree_attention)
    evaluation, task = job.evaluation, make_task(run.data)
    questions = make_questions(
        held_out(run, evaluation.questions),
        tokenizer,
        engine.space,
        task=task,
        text_field=run.training.dataset_text_field,
        max_length=run.training.max_length,
        prompt_tokens=evaluation.prompt_tokens,
    )
    config = replace(run.training.sampling(), seed=run.training.seed)
    start = None if job.start is None else job.start.folder
    gamma = run.training.gamma if run.training.objective in WITH_VALUES else None
    subject = Subject(engine, tokenizer, questions, config, task, start, gamma)
    for name in job.missing:
        if name is None:
            found = measure_model(subject, evaluation)
        else:
            found = measure_decoding(subject, Decoding.of(job.decodings[name]), evaluation)
        write_whole(job.evaluation_file(name), json.dumps(found))


def held_out(run: Run, questions: int | None) -> Any:
    """A task's test questions, or the test split of a data set; the first so many. Raises InputError for none."""
    data = run.data
    task = make_task(data)
    if task is not None:
        found = split(task, 0, data.test_size, data.task_seed)["test"]
    else:
        splits: Any = load_splits(data.dataset_name or "", data.dataset_config)
        if data.dataset_test_split not in splits:
            raise InputError(f"the data set has the splits {', '.join(splits)}; set dataset_test_split to one of them")
        found = splits[data.dataset_test_split]
    return found.select(range(min(questions or len(found), len(found))))
