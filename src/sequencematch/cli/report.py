"""`sequencematch report`: one HTML page of what studies have found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..reporting import write_report
from .sampling import Parser


def run(argv: Sequence[str]) -> None:
    """Write the report of some studies' results."""
    parser = Parser(prog="sequencematch report", description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="folder of a study's results, or of several such folders"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: report.html in the first DIR)")
    arguments = parser.parse_args(argv)
    path = arguments.output or arguments.folders[0] / "report.html"
    write_report(arguments.folders, path)
    print(f"Report: {path}")
