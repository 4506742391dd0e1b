"""The model card of a training run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from ..models import has_adapters
from ..models.prepare import core_of
from ..reporting import write_model_card
from ..versions import versions
from .config import SequenceMatchConfig

if TYPE_CHECKING:
    from .trainer import SequenceMatchTrainer

TRAINING = ("learning_rate", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "seed")
"""Options of transformers that the card names, beside our own."""
RESULTS = ("loss", "objective/", "backspace/", "completions/")
"""What of the last log the card tells."""


def write_card(trainer: SequenceMatchTrainer, model_name: str | None, dataset_name: str | None) -> None:
    """Write README.md into the run's folder, unless there is one of somebody else's; see `write_model_card`."""
    args = trainer.args
    write_model_card(
        str(args.output_dir),
        model_name=model_name or Path(str(args.output_dir)).resolve().name,
        base_model=getattr(core_of(trainer.model).config, "_name_or_path", None) or None,
        options=_options(trainer),
        versions=versions(),
        dataset_name=dataset_name,
        hub_model_id=args.hub_model_id,
        adapter=has_adapters(trainer.model),
        results=_results(trainer),
    )


def _options(trainer: SequenceMatchTrainer) -> dict[str, Any]:
    args = trainer.args
    inherited = {field.name for field in fields(TrainingArguments)}
    own = [field.name for field in fields(SequenceMatchConfig) if field.name not in inherited]
    found = {name: getattr(args, name) for name in (*own, *TRAINING)}
    found["deletions"] = getattr(core_of(trainer.model).config, "deletion_actions", None)
    found["steps"] = trainer.state.global_step
    found["examples in a step"] = trainer.get_total_train_batch_size(args)
    return {name: getattr(value, "value", value) for name, value in found.items() if value not in (None, {}, "")}


def _results(trainer: SequenceMatchTrainer) -> dict[str, Any]:
    """The last training log's own metrics, and the last evaluation's."""
    history = trainer.state.log_history
    trained = next((entry for entry in reversed(history) if "loss" in entry), {})
    evaluated = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
    found = {name: value for name, value in trained.items() if name.startswith(RESULTS)}
    return found | {name: evaluated[name] for name in ("eval_loss",) if name in evaluated}
