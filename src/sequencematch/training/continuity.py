"""Whether a run that resumes is the run that was stopped: the options and the data that decide its loss curve."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from ..errors import InputError

NO_EFFECT = {
    "chat_template_path",
    "dataset_num_proc",
    "dataset_text_field",
    "generation_batch_size",
    "log_completions",
    "model_init_kwargs",
    "num_completions_to_print",
    "packing",
    "pad_token",
    "tree_attention",
}
"""Options of ours that leave the curve alone, or show in the data."""
SHARED = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "data_seed",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "optim",
    "seed",
    "warmup_steps",
    "weight_decay",
)
"""Options of transformers that decide it. Most of them would come from the checkpoint, whatever the new run says."""
BATCH = "per_device_train_batch_size x gradient_accumulation_steps x processes"
FIRST_ROWS = 16


def curve_options(args: TrainingArguments, global_batch: int) -> dict[str, Any]:
    """The options that decide the loss curve, as JSON has them.

    Args:
        args: `TrainingArguments`, or a class with more options, which then count unless they are in NO_EFFECT.
        global_batch: examples of an optimizer step on all processes.
    """
    own = {field.name for field in fields(args)} - {field.name for field in fields(TrainingArguments)}
    options = {name: getattr(args, name) for name in (*sorted(own - NO_EFFECT), *SHARED)}
    if not args.auto_find_batch_size:
        options[BATCH] = global_batch
    return json.loads(json.dumps(options))


def data_fingerprint(dataset: Any) -> dict[str, Any] | None:
    """The number of rows of a tokenized data set and a hash of the first ones; None for streams, which have no end."""
    if not isinstance(dataset, Dataset):
        return None
    rows = dataset[:FIRST_ROWS]
    ids = json.dumps([rows["prompt_ids"], rows["completion_ids"]])
    return {"rows": len(dataset), "first_rows": hashlib.sha256(ids.encode()).hexdigest()}


def check_same_run(folder: str, recorded: dict[str, Any], options: dict[str, Any], data: dict[str, Any] | None) -> None:
    """Raise InputError if a checkpoint's record differs from what a run would go on with, naming each difference."""
    was = recorded["options"]
    changed = [name for name in options if name in was and was[name] != options[name]]
    if changed:
        values = {name: (json.dumps(was[name]), json.dumps(options[name])) for name in changed}
        differences = ", ".join(f"{name}: {before} (now {now})" for name, (before, now) in values.items())
        raise InputError(
            f"the checkpoint '{folder}' was made with {differences}; resume with the old value, or start a new run "
            "from the checkpoint's weights"
        )
    if data is None or recorded["data"] is None or recorded["data"] == data:
        return
    rows, now = recorded["data"]["rows"], data["rows"]
    difference = f"{rows} examples, and this run has {now}" if rows != now else "other examples than this run has"
    raise InputError(
        f"the checkpoint '{folder}' was made on {difference}; resume with the old data, or start a new run from the "
        "checkpoint's weights"
    )
