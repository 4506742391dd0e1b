"""A study from its file to its results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .pool import run_jobs
from .results import Jobs, write_results
from .runs import Job
from .spec import Study


def jobs_of(study: Study, store: Path) -> tuple[Jobs, list[Job]]:
    """The job of each cell and seed, and all jobs that the study needs, pretraining first, none twice."""
    jobs: dict[tuple[str, int], Job] = {}
    needed: dict[str, Job] = {}
    pretraining = study.pretraining()
    for seed in study.seeds:
        start = None
        if pretraining is not None:
            options = {**pretraining, "seed": seed}
            start = Job(f"{study.name}/pretrain {seed}", options, None, None, {}, study.evaluation, store)
            needed[start.key] = start
        for cell in study.cells:
            options = {**cell.options, "seed": seed}
            name = f"{study.name}/{cell.name} {seed}"
            job = Job(name, options, study.budget, start, study.decoding, study.evaluation, store)
            jobs[cell.name, seed] = job
            needed.setdefault(job.key, job)
    return jobs, list(needed.values())


def run_studies(
    studies: Sequence[Study], folders: Sequence[Path], store: Path, console: Console, workers: int | None = None
) -> None:
    """Run what is missing of some studies in one pool of processes, and write the results of each into its folder.

    Args:
        studies: what to run.
        folders: where the results of each go.
        store: where runs are kept, each under a hash of all that decides it: studies share runs, and one that was
            stopped, or has grown, runs only what is not there yet.
        console: for progress.
        workers: processes; as many as cores if not given.

    Raises InputError before anything is run if any run's options are refused, and at the end if runs failed.
    """
    for study in studies:
        study.check()
    start = time.perf_counter()
    planned = [jobs_of(study, store) for study in studies]
    # Those that others wait for come first.
    every = sorted((job for _, needed in planned for job in needed), key=lambda job: job.budget is not None)
    run_jobs(every, console, workers)
    for study, folder, (jobs, _) in zip(studies, folders, planned, strict=True):
        write_results(study, study.cells, jobs, folder, time.perf_counter() - start)
