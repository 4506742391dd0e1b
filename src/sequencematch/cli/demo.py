"""`sequencematch demo`: MLE, BC and SequenceMatch on star graphs and arithmetic, with tables and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..demo import run_demo
from .sampling import Parser


def run(argv: Sequence[str]) -> None:
    """Run the demo."""
    parser = Parser(prog="sequencematch demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    parser.add_argument("--quick", action="store_true", help="a miniature that only shows that everything runs")
    arguments = parser.parse_args(argv)
    run_demo(arguments.output, arguments.quick)
