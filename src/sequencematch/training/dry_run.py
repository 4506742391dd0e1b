"""What a run would do, without doing it: model, actions, data, memory, first loss, and examples as trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data import Example
from ..errors import InputError
from ..evaluation import transcribe
from ..models.prepare import core_of
from ..models.tiled_head import tile_entries
from ..reporting import STYLES
from ..tree import TreeBatch
from .memory import MemoryEstimate, memory_estimate
from .trainer import SequenceMatchTrainer

SHOWN = 3
"""Examples that are shown."""
GIB = 2**30


def dry_run(trainer: SequenceMatchTrainer, console: Console) -> None:
    """Take the first batch as far as its loss, and print what is found; no weights change and nothing is written.

    Raises InputError if the first loss is not finite.
    """
    examples = next(iter(trainer.get_train_dataloader()))["examples"]
    trajectories = trainer.batches.demonstrations(examples)
    batch = trainer.batches.collate(trajectories)
    loss = _first_loss(trainer, batch)
    if not trainer.is_world_process_zero():
        return
    table = Table("", "", title="Dry run", show_header=False, title_justify="left")
    facts = _model(trainer) | _actions(trainer) | _data(trainer, examples)
    for name, value in {**facts, "first loss": f"{loss:.4f} per action"}.items():
        table.add_row(name, str(value))
    console.print(table)
    console.print(_memory_table(estimate_memory(trainer, batch)))
    console.print(_examples_table(trainer, trajectories[:SHOWN]))


def _first_loss(trainer: SequenceMatchTrainer, batch: TreeBatch) -> float:
    """Negative log-likelihood of an action of the first batch, noise included."""
    with torch.no_grad(), trainer.compute_loss_context_manager():
        steps = trainer.states(trainer.model.to(trainer.args.device), batch)
    weight = steps.weight.to(steps.v.dtype)
    loss = float((weight * (steps.v - steps.q)).sum() / weight.sum())
    if not math.isfinite(loss):
        raise InputError(
            f"the first loss is {loss}: the model's weights are broken, or its dtype is too narrow; load it with "
            "dtype: bfloat16 or float32"
        )
    return loss


def _model(trainer: SequenceMatchTrainer) -> dict[str, str]:
    model, core = trainer.model, core_of(trainer.model)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "model": f"{core.config.model_type}, {total:,} parameters, {str(core.dtype).removeprefix('torch.')}",
        "trained": f"{trained:,} parameters ({trained / total:.1%})",
        "device": f"{trainer.args.device}, {trainer.accelerator.num_processes} process(es)",
    }


def _actions(trainer: SequenceMatchTrainer) -> dict[str, str]:
    tokenizer: Any = trainer.processing_class
    space = trainer.space
    deletions = [
        f"{tokenizer.convert_ids_to_tokens(d.token_id)} (id {d.token_id}) deletes {d.length}" for d in space.deletions
    ]
    return {
        "actions": f"{space.vocab_size:,}; the tokenizer has {len(tokenizer):,} tokens",
        "end": f"{tokenizer.eos_token} (id {space.eos_token_id})",
        "deletions": ", ".join(deletions) or "none",
    }


def _data(trainer: SequenceMatchTrainer, examples: Sequence[Example]) -> dict[str, str]:
    args = trainer.args
    size = trainer.get_total_train_batch_size(args)
    found = {"objective": args.objective + (f", {args.divergence}" if args.objective == "sequencematch" else "")}
    found["noise"] = f"{args.noise_source}, rate {args.noise_rate:g}" if args.noise_source != "none" else "none"
    data: Any = trainer.train_dataset
    if hasattr(data, "__len__"):
        lengths = [len(p) + len(c) for p, c in zip(data["prompt_ids"], data["completion_ids"], strict=True)]
        found["examples"] = (
            f"{len(data):,}, of {sum(lengths) / len(data):,.0f} tokens on average and {max(lengths):,} at most"
        )
        epochs = args.num_train_epochs
        steps = args.max_steps if args.max_steps > 0 else math.ceil(math.ceil(len(data) / size) * epochs)
    else:
        found["examples"], steps = "streamed", args.max_steps
    found["steps"] = f"{steps:,} of {size:,} examples"
    return found


def estimate_memory(trainer: SequenceMatchTrainer, batch: TreeBatch) -> MemoryEstimate:
    """The peak memory of a step on `batch`, with as many rollouts as the objective adds; see `memory_estimate`."""
    args, core = trainer.args, core_of(trainer.model)
    config = core.config.get_text_config(decoder=True)
    parameters = list(trainer.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    half = args.bf16 or args.fp16 or core.dtype.itemsize < 4
    share = 1 + args.policy_batch_share * args.uses_rollouts_in_objective
    return memory_estimate(
        trainable_parameters=sum(parameter.numel() for parameter in trained),
        parameter_bytes=max((parameter.element_size() for parameter in trained), default=4),
        frozen_bytes=sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocab_size=trainer.space.vocab_size,
        nodes=round(batch.nodes * share),
        activation_bytes=2 if half else 4,
        gradient_checkpointing=bool(args.gradient_checkpointing),
        tile_entries=tile_entries(torch.device(args.device)),
    )


def _memory_table(found: MemoryEstimate) -> Table:
    table = Table("memory of a step, estimated", "GiB", title_justify="left")
    for name, value in vars(found).items():
        table.add_row(name, f"{value / GIB:.2f}")
    table.add_row("total", f"{found.total / GIB:.2f}", style="bold")
    return table


def _examples_table(trainer: SequenceMatchTrainer, trajectories: Sequence[Any]) -> Table:
    """Examples as the model learns them: mistakes struck through, deletions dim."""
    tokenizer: Any = trainer.processing_class
    table = Table("prompt", "trajectory", title="Examples", title_justify="left", show_lines=True)
    for trajectory in trajectories:
        pieces = transcribe(trajectory.actions.tolist(), tokenizer, trainer.space)
        written = Text.assemble(*((piece["text"], STYLES[piece["fate"]]) for piece in pieces))
        table.add_row(Text(tokenizer.decode(trajectory.prompt_ids.tolist())), written)
    return table
