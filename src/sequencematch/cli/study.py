"""`sequencematch study`: train and compare arms over a grid, seeds and ways of decoding, from a YAML file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import InputError
from ..reporting import load_study, study_tables, write_report
from ..study import Study, jobs_of, run_studies
from .sampling import Parser


def run(argv: Sequence[str]) -> None:
    """Run what is missing of some studies, and write the results and the report of each."""
    parser = Parser(prog="sequencematch study", description=__doc__)
    parser.add_argument("studies", nargs="+", metavar="study.yaml", help="YAML files; studies share equal runs")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/studies"),
        help="folder: results of each go to OUTPUT/NAME, all runs to OUTPUT/store (default: runs/studies)",
    )
    parser.add_argument("--workers", type=int, help="processes, of one thread each (default: as many as cores)")
    parser.add_argument("--dry_run", action="store_true", help="check everything, say what is missing, run nothing")
    parser.add_argument("--quick", action="store_true", help="miniatures that only show that everything runs")
    arguments = parser.parse_args(argv)
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"workers must be at least 1, not {arguments.workers}")
    studies = [Study.load(path, arguments.quick) for path in arguments.studies]
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise InputError(f"two studies have one name: {', '.join(names)}; rename one of the files")
    folders = [arguments.output / name for name in names]
    store, console = arguments.output / "store", Console()
    if arguments.dry_run:
        for study in studies:
            _plan(study, store, console)
        return
    run_studies(studies, folders, store, console, arguments.workers)
    for folder in folders:
        write_report([folder], folder / "report.html")
        for table in study_tables(load_study(folder)):
            console.print(table)
        console.print(f"Results: {folder}. Report: {folder / 'report.html'}.", highlight=False)


def _plan(study: Study, store: Path, console: Console) -> None:
    study.check()
    _, jobs = jobs_of(study, store)
    for job in jobs:
        missing = ", ".join(name or "the model" for name in job.missing)
        state = "done" if job.done else f"to measure: {missing}" if job.trained else "to train"
        console.print(f"{job.name} ({job.key}): {state}", highlight=False)
