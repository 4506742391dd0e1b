"""`sequencematch train`: one training run from a YAML file and flags, in one process or several."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ..training.checkpoints import no_empty_folder
from ..training.dry_run import dry_run
from ..training.run import Run, make_trainer
from .launch import launch


def run(argv: Sequence[str]) -> int:
    """Train, and save model, tokenizer and model card in `output_dir`; returns the exit code."""
    code = launch(argv)
    if code is not None:
        return code
    parsed = Run.parse(argv)
    with no_empty_folder(parsed.training.output_dir):
        trainer = make_trainer(parsed)
        if parsed.data.dry_run:
            dry_run(trainer, Console())
            return 0
        trainer.train(resume_from_checkpoint=parsed.training.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card(dataset_name=parsed.data.dataset_name)
    if parsed.training.push_to_hub:
        trainer.push_to_hub(dataset_name=parsed.data.dataset_name)
    if hasattr(trainer, "end"):  # since transformers 5.18: closes trackers and the process group
        trainer.end()
    return 0
