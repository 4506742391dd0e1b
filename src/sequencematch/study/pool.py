"""Jobs in a pool of local processes, with a bar for each that trains."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.context import BaseContext
from multiprocessing.managers import SyncManager
from typing import Any

import torch
from datasets import disable_progress_bars as disable_datasets_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from ..errors import InputError, reason_of
from .runs import Job, do


def run_jobs(jobs: Sequence[Job], console: Console, workers: int | None = None) -> None:
    """Do all jobs, those that others start from first.

    A job that fails keeps no other from running, unless it starts from it. Raises InputError at the end if any failed.
    """
    waiting: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.done:
            waiting.setdefault(job.key, []).append(job)  # one run, which several studies measure
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    workers = workers or os.cpu_count() or 1
    with start_manager(context) as manager, _progress(console) as progress:
        queue = manager.Queue()
        bars: dict[str, Any] = {}
        overall = progress.add_task("all runs", total=len(waiting))
        with ProcessPoolExecutor(workers, context, use_one_thread) as pool:
            running: dict[Future, Job] = {}
            try:
                while waiting or running:
                    for key, (job, *_) in list(waiting.items()):
                        if job.start is None or job.start.trained:
                            running[pool.submit(do, waiting.pop(key), queue)] = job
                        elif job.start.key in failed:
                            failed[key] = job.name
                            del waiting[key]
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        _conclude(running.pop(future), future, failed, console)
                        progress.advance(overall)
                    _advance(progress, bars, queue)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if failed:
        raise InputError(f"{len(failed)} runs failed ({', '.join(failed.values())}); what they said is above")


def start_manager(context: BaseContext) -> SyncManager:
    """The process that holds the queue."""
    manager = SyncManager(ctx=context)
    manager.start(_watch_parent)
    return manager


def use_one_thread() -> None:
    """Start a worker: one thread, so that workers do not fight over the cores, and no bars beside the study's own."""
    _watch_parent()
    torch.set_num_threads(1)
    disable_datasets_bars()
    disable_transformers_bars()


def _watch_parent() -> None:
    """End with the study's own process: killed, it cannot end its workers itself."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _conclude(job: Job, future: Future, failed: dict[str, str], console: Console) -> None:
    error: Any = future.exception()
    if error is None:
        console.print(f"{job.name} done, trained in {job.load_run()['seconds']:.0f} s", highlight=False)
        return
    failed[job.key] = job.name
    console.print(f"{job.name} failed: {reason_of(error)}", style="red", highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _advance(progress: Progress, bars: dict[str, Any], queue: Any) -> None:
    while not queue.empty():
        name, step, total = queue.get()
        if name not in bars:
            bars[name] = progress.add_task(name, total=total)
        progress.update(bars[name], completed=step, visible=step < total)
