"""The demo's two studies in one pool of processes, and one report of both."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path

import yaml
from rich.console import Console

from ..reporting import load_study, study_tables, write_report
from ..study import Study, miniature, run_studies

TASKS = ("star", "arithmetic")
"""The demo's studies, in the order in which they are shown."""


def demo_studies(quick: bool = False) -> list[Study]:
    """The demo's studies, from the YAML files in `configs/`; `quick` makes each of them a miniature."""
    folder = resources.files(__package__) / "configs"
    given = {task: yaml.safe_load((folder / f"{task}.yaml").read_text()) for task in TASKS}
    return [Study.of(task, miniature(study) if quick else study) for task, study in given.items()]


def run_demo(folder: Path, quick: bool = False) -> None:
    """Run the demo, print its tables, and write each study's results and `report.html` into `folder`.

    Args:
        folder: where everything goes, every arm's model and configuration included.
        quick: a miniature that shows that everything runs.
    """
    start = time.perf_counter()
    studies, console = demo_studies(quick), Console()
    folders = [folder / study.name for study in studies]
    run_studies(studies, folders, folder / "store", console)
    write_report(folders, folder / "report.html")
    for results in folders:
        for table in study_tables(load_study(results)):
            console.print(table)
    seconds = time.perf_counter() - start
    console.print(f"{seconds:.0f} seconds. Report: {folder / 'report.html'}. Numbers: {folder}", highlight=False)
