"""`sequencematch train`: one training run from a YAML file and flags."""

from __future__ import annotations

from collections.abc import Sequence

from ..training.checkpoints import no_empty_folder
from ..training.run import Run, make_trainer


def run(argv: Sequence[str]) -> None:
    """Train, and save model and tokenizer in `output_dir`."""
    parsed = Run.parse(argv)
    with no_empty_folder(parsed.training.output_dir):
        trainer = make_trainer(parsed)
        trainer.train(resume_from_checkpoint=parsed.training.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
