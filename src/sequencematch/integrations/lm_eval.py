"""The command line of EleutherAI's lm-evaluation-harness, which then knows the model `sequencematch`.

`python -m sequencematch.integrations.lm_eval` takes what `lm_eval` takes, subcommands included.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ..errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lm_eval` with these arguments, or the process's own. Bad input prints one sentence and returns 2."""
    try:
        importlib.import_module(".harness", __package__)
        from lm_eval.__main__ import cli_evaluate

        sys.argv = ["lm_eval", *(sys.argv[1:] if argv is None else argv)]
        cli_evaluate()
    except InputError as error:
        print(f"sequencematch: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
