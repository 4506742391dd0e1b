"""Entry point of the `sequencematch` command."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from ..errors import InputError

# On some processors bitsandbytes asks, whenever it is imported, for a package that it can do without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

COMMANDS = {
    "train": "train a model: sequencematch train --config run.yaml [--option value ...] [--dry_run]",
    "generate": "complete a prompt and watch tokens being taken back",
    "evaluate": "measure accuracy, deletions and truncation on a data set or task",
    "env": "what a bug report needs: versions, hardware, limits",
    "study": "train and compare arms over a grid, seeds and ways of decoding: sequencematch study study.yaml",
    "lm_eval": "EleutherAI's evaluation harness, with deletions: its own options, --model sequencematch",
    "report": "one HTML page of a study's results",
    "demo": "train and compare MLE, BC and SequenceMatch on two tasks, and write a report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input prints one sentence and returns 2; an interrupt returns 130."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from .. import __version__

        print(f"sequencematch {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(
            f"sequencematch: error: there is no command '{command}'; choose from {', '.join(COMMANDS)}", file=sys.stderr
        )
        return 2
    # Transformers announces every optional package that it does without; none of them concerns the user here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return importlib.import_module(f".{command}", __package__).run(rest) or 0
    except InputError as error:
        print(f"sequencematch: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sequencematch: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: sequencematch COMMAND [options]", "", *lines, "", "sequencematch COMMAND --help tells more."]
    )


if __name__ == "__main__":
    sys.exit(main())
