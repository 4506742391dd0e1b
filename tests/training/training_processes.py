"""Training runs that several processes make together, and what one process must find the same.

Run as a script by torchrun: `training_processes.py ddp|fsdp2 FOLDER` makes all runs and writes FOLDER/results.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from training_runs import ROLLOUTS, SpyEngine, logs, new_trainer, no_dropout, questions
from transformers import Trainer, TrainerCallback

from sequencematch.errors import InputError
from sequencematch.models import evaluate_states
from sequencematch.models.gathered import whole_weights
from sequencematch.noise import Mistake
from sequencematch.training import SequenceMatchConfig
from sequencematch.training.trainer import collate_examples

GLOBAL_BATCH = 8
SAVED_STEP = 3
RUNS = {
    "lecam": {"objective": "sequencematch", "divergence": "lecam", "alpha": 0.05, "optim": "adamw_torch"},
    "bc": {"objective": "bc", "optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2},
}
"""Compared with one process. The second ends an epoch of 20 rows with half a batch, on whichever processes."""


class SameMistakes:
    """One wrong token at the start of each example, the same whichever process has the example."""

    def mistakes(self, examples, rng):
        return [[Mistake(0, (5 if example.completion_ids[0] != 5 else 6,))] for example in examples]


def deterministic_trainer(name: str, folder: Path, processes: int, **options: Any):
    """A trainer of one of RUNS, with the same global batch for any number of processes."""
    run = {**RUNS[name], **options}
    size = GLOBAL_BATCH // run.get("gradient_accumulation_steps", 1) // processes
    return new_trainer(
        folder,
        train=questions(20)["train"] if name == "bc" else None,
        model_options={"n_layer": 2, **no_dropout()},
        noise=SameMistakes(),
        **{"max_steps": 5, "per_device_train_batch_size": size, "use_cpu": True, **run},
    )


def losses(trainer) -> list[float]:
    """The loss of each step."""
    return [entry["loss"] for entry in logs(trainer) if "loss" in entry]


def whole(parameters: Any) -> dict[str, torch.Tensor]:
    """Copies of named tensors, sharded ones gathered."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in parameters
    }


def several_devices() -> dict[str, Any]:
    """Have accelerate shard by FSDP2 on CPUs; returns the options that keep it so.

    Accelerate turns an FSDP config into DDP where processes have no devices of their own: what it asks is the
    distributed type. All else is as on GPUs: its own plugin, its preparing of the model, torch's `fully_shard`.
    """
    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
        FSDP_CPU_RAM_EFFICIENT_LOADING="true",
        FSDP_RESHARD_AFTER_FORWARD="true",
    )
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return {"accelerator_config": {"use_configured_state": True}}


def deterministic_runs(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Losses and final weights of RUNS."""
    found = {}
    for name in RUNS:
        trainer = deterministic_trainer(name, folder / name, 2, **options)
        trainer.train()
        found[name] = {"losses": losses(trainer), "weights": whole(trainer.model.named_parameters())}
    found["wrapped"] = type(trainer.model_wrapped).__name__
    return found


def resumed_run(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A run with a checkpoint, and another that goes on from it."""
    options = {**options, "save_strategy": "steps", "save_steps": SAVED_STEP}
    straight = deterministic_trainer("lecam", folder / "saved", 2, **options)
    kept = KeepWeights()
    straight.add_callback(kept)
    straight.train()
    checkpoint = folder / "saved" / f"checkpoint-{SAVED_STEP}"
    again = deterministic_trainer("lecam", folder / "again", 2, **options)
    again.train(resume_from_checkpoint=str(checkpoint))
    return {
        "straight": losses(straight),
        "again": losses(again),
        "saved_weights": kept.weights,
        "straight_weights": whole(straight.model.named_parameters()),
        "again_weights": whole(again.model.named_parameters()),
    }


class KeepWeights(TrainerCallback):
    """Keeps the weights that a checkpoint should have."""

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == SAVED_STEP:
            self.weights = whole(model.named_parameters())


def rollouts_run(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The paper's recipe with rollouts and a buffer, on 18 rows: the last batch is short of two. All ranks' state."""
    options = {**ROLLOUTS, **options, "max_steps": 6, "max_staleness": 3}
    trainer = new_trainer(
        folder, train=questions(18)["train"], engine=SpyEngine, per_device_train_batch_size=4, use_cpu=True, **options
    )
    trainer.train()
    engine, buffer = trainer.batches.engine, trainer.batches.buffer.state_dict()
    return {
        "losses": losses(trainer),
        "prompts": gather_object([[call["prompts"] for call in engine.calls]]),
        "seeds": gather_object([[call["config"].seed for call in engine.calls]]),
        "versions": gather_object([[call["version"] for call in engine.calls]]),
        "size": gather_object([len(trainer.batches.buffer)]),
        "buffered": gather_object([list(buffer["policy_version"])]),
        "weights": gather_object([whole(trainer.model.named_parameters())]),
    }


def evaluation(folder: Path, processes: int, options: dict[str, Any]) -> float:
    """The loss after a step on 13 rows, which two processes cannot share out evenly."""
    options = {**options, "test": questions(20, 13)["test"], "per_device_eval_batch_size": 4, "max_steps": 1}
    trainer = deterministic_trainer("lecam", folder, processes, **options)
    trainer.train()  # FSDP2 prepares no model without its optimizer
    return trainer.evaluate()["eval_loss"]


def refusal_of_fsdp1(accelerator: Any) -> str:
    """What `whole_weights` says to a model that FSDP1 shards."""
    model = FullyShardedDataParallel(torch.nn.Linear(4, 4), device_id=torch.device("cpu"))
    try:
        with whole_weights(model, accelerator):
            return "nothing"
    except InputError as error:
        return str(error)


def gathered_weights(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What the weights are before, inside and after `whole_weights`, and the gradients of a step before and after.

    Inside, rank 0 alone runs the model.
    """
    trainer = deterministic_trainer("lecam", folder / "gathered", 2, max_steps=1, **options)
    trainer.train()
    model = trainer.model_wrapped
    batch = trainer.batches.clean(collate_examples([trainer.train_dataset[i] for i in range(4)])["examples"])

    def gradients():
        model.zero_grad()
        evaluate_states(model, batch, trainer.space).q.sum().backward()
        return whole((name, value.grad) for name, value in trainer.model.named_parameters())

    def sharded():
        return all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())

    result = {"gradients_before": gradients(), "sharded_before": sharded()}
    with whole_weights(model, trainer.accelerator), torch.no_grad():
        result["sharded_inside"] = any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        if trainer.args.process_index == 0:
            # An odd number of forwards, of which some leave the head out.
            result["inside"] = [evaluate_states(trainer.model, batch, trainer.space).q for _ in range(3)]
            rollouts = trainer.batches.engine.rollout([[4, 5]] * 3, trainer.batches.sampling)
            result["rollouts"] = len(rollouts)
    result["sharded_after"] = sharded()
    result["gradients_after"] = gradients()
    with torch.no_grad():
        result["outside"] = evaluate_states(model, batch, trainer.space).q
    return {**result, "refusal": refusal_of_fsdp1(trainer.accelerator)}


def streamed_rows(folder: Path, options: dict[str, Any]) -> list[list[int]]:
    """The rows that each rank sees of a streaming data set in one epoch."""
    rows = [{"prompt_ids": [4], "completion_ids": [5, row], "prompt": "a", "completion": str(row)} for row in range(16)]
    settings = {**options.get("accelerator_config", {}), "dispatch_batches": False}
    args = SequenceMatchConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        accelerator_config=settings,
    )
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = Trainer(torch.nn.Linear(1, 1), args, data_collator=collate_examples, train_dataset=stream)
    seen = [int(example.completion) for batch in trainer.get_train_dataloader() for example in batch["examples"]]
    return gather_object([seen])


def main(mode: str, folder: Path) -> None:
    """Make all runs in one of the processes; the first writes down what it found."""
    options = several_devices() if mode == "fsdp2" else {}
    found = {
        **deterministic_runs(folder, options),
        "resumed": resumed_run(folder, options),
        "rollouts": rollouts_run(folder / "rollouts", options),
        "gathered": gathered_weights(folder, options),
        "eval_loss": evaluation(folder / "evaluated", 2, options),
        "streamed": streamed_rows(folder / "streamed", options),
    }
    if PartialState().is_main_process:
        torch.save(found, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
