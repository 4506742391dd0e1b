"""Running every arm in a pool of processes, and writing what came out."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..reporting import demo_tables, write_report
from .arm import Job, run_job, use_one_thread
from .recipes import ARMS, Recipe, load_recipes


def run_demo(folder: Path, quick: bool = False) -> dict[str, Any]:
    """Run the demo, print its tables, and write `results.json` and `report.html` into `folder`.

    Args:
        folder: where everything goes, every arm's model and configuration included.
        quick: a miniature that shows that everything runs.

    Returns:
        what results.json holds.
    """
    start = time.perf_counter()
    recipes = load_recipes(quick)
    console = Console()
    results = _run_all(recipes, folder, console)
    report = _assemble(recipes, results, folder, time.perf_counter() - start)
    (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    write_report(report, folder / "report.html")
    for table in demo_tables(report):
        console.print(table)
    console.print(
        f"{report['seconds']:.0f} seconds. Report: {folder / 'report.html'}. Numbers: {folder / 'results.json'}"
    )
    return report


def _run_all(recipes: list[Recipe], folder: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Every job's result by name; arms that start from a checkpoint wait for the run that makes it."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, _progress(console) as progress:
        queue = manager.Queue()
        with ProcessPoolExecutor(os.cpu_count(), context, use_one_thread) as pool:
            running: dict[Future, Job] = {}

            def submit(recipe: Recipe, runs: tuple[str, ...]) -> None:
                for run in runs:
                    job = Job(recipe, run, folder)
                    running[pool.submit(run_job, job, queue)] = job

            # The checkpoint first: half of the arms wait for it.
            for recipe in sorted(recipes, key=lambda recipe: recipe.pretrain is None):
                submit(recipe, ARMS if recipe.pretrain is None else ("pretrain",))
            results: dict[str, dict[str, Any]] = {}
            bars: dict[str, Any] = {}
            while running:
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    results[job.name] = future.result()
                    console.print(f"{job.name} done, trained in {results[job.name]['seconds']:.0f} s")
                    if job.run == "pretrain":
                        submit(job.recipe, ARMS)
                _advance(progress, bars, queue)
    return results


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _advance(progress: Progress, bars: dict[str, Any], queue: Any) -> None:
    while not queue.empty():
        name, step, total = queue.get()
        if name not in bars:
            bars[name] = progress.add_task(name, total=total)
        progress.update(bars[name], completed=step)


def _assemble(
    recipes: list[Recipe], results: dict[str, dict[str, Any]], folder: Path, seconds: float
) -> dict[str, Any]:
    tasks = {
        recipe.name: {
            "title": recipe.title,
            "description": recipe.description,
            "arms": {arm: results[f"{recipe.name}/{arm}"] for arm in ARMS},
            **({"pretrain": results[f"{recipe.name}/pretrain"]} if recipe.pretrain else {}),
        }
        for recipe in recipes
    }
    runs = [(recipe, run) for recipe in recipes for run in (*(["pretrain"] if recipe.pretrain else []), *ARMS)]
    packages = ("sequencematch", "torch", "transformers", "trl", "accelerate", "datasets", "numpy")
    return {
        "tasks": tasks,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()},
        "config": {f"{recipe.name}/{run}": recipe.options(run, folder) for recipe, run in runs},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": seconds,
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
