"""`sequencematch lm_eval`: EleutherAI's evaluation harness, in which `--model sequencematch` is known."""

from __future__ import annotations

from collections.abc import Sequence

from ..integrations.lm_eval import main


def run(argv: Sequence[str]) -> int:
    """Run the harness with its own options."""
    return main(argv)
