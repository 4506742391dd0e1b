"""What our trainer costs beside transformers' own, and how training scales over two processes. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from measure import Spread, Times, interleave_calls, time_ratio
from report import finish, parse, parser, table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from workload import EOS, SIZES, START, Size, chosen_size, text

from sequencematch import SequenceMatchConfig, SequenceMatchTrainer
from sequencematch.data import Example
from sequencematch.models import evaluate_states, layout_of, prepare_model
from sequencematch.noise import demonstrate
from sequencematch.objectives import bc_loss
from sequencematch.tree import collate_trajectories

STEPS, WARM_UP = 8, 2
"""Steps of a run, and how many of them are not timed."""
ROWS = 1
"""Documents in a step of a process: the less there is to compute, the more a trainer's own work shows."""


def word_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """A token for each of the words `w0`, `w1`, ... up to the vocabulary's end, three of which are the special ones."""
    special = {0: "<pad>", START: "<bos>", EOS: "<eos>"}
    words = {special.get(token, f"w{token}"): token for token in range(size.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )


def documents(size: Size, count: int) -> Dataset:
    """Full rows of random text, without the start and end tokens that training adds."""
    rng = np.random.default_rng(0)
    rows = [" ".join(f"w{token}" for token in text(size.row - 2, size.vocab, rng)) for _ in range(count)]
    return Dataset.from_dict({"text": rows})


class Clock(TrainerCallback):
    """Seconds of each optimizer step, and of what lies between it and the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Before the forward pass; the batch has been fetched."""
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """The median step, data included, after the warm-up."""
        return statistics.median(np.diff(self.marks)[WARM_UP - 1 :])


def options(folder: str) -> dict[str, Any]:
    """What all trainers share."""
    return {
        "output_dir": folder,
        "max_steps": STEPS,
        "learning_rate": 1e-4,
        "logging_steps": STEPS,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": os.environ.get("CUDA_VISIBLE_DEVICES") == "",
    }


def ours(size: Size, folder: str, device: str, clock: Clock) -> Trainer:
    """Our trainer, maximum likelihood."""
    args = SequenceMatchConfig(
        **options(folder), per_device_train_batch_size=size.rows, objective="mle", max_length=size.row
    )
    data = documents(size, size.rows * STEPS * 2)
    return SequenceMatchTrainer(
        size.model(device), args, train_dataset=data, processing_class=word_tokenizer(size), callbacks=[clock]
    )


class SameLoss(Trainer):
    """transformers' trainer around our loss and nothing else of ours: equal compute."""

    model_accepts_loss_kwargs = False
    space: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Maximum likelihood on the trees."""
        batch = inputs["batch"].to(self.args.device)
        return bc_loss(evaluate_states(model, batch, self.space), denominator=batch.weight.sum())[0]


def same(size: Size, folder: str, device: str, clock: Clock) -> Trainer:
    """transformers' trainer with our forward pass and loss."""
    model = size.model(device)
    prepare_model(model)
    space = size.plain_space

    def collate(rows: list[dict]) -> dict[str, Any]:
        walks = [demonstrate(Example((START,), tuple(row["input_ids"][1:]), "", ""), [], space) for row in rows]
        return {"batch": collate_trajectories(walks, space, layout_of(model))}

    trainer = _plain(SameLoss, model, size, folder, clock, collate)
    trainer.space = space
    return trainer


def stock(size: Size, folder: str, device: str, clock: Clock) -> Trainer:
    """transformers' trainer with the model's own loss."""
    import torch

    def collate(rows: list[dict]) -> dict[str, Any]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    return _plain(Trainer, size.model(device), size, folder, clock, collate)


def _plain(kind: type, model: Any, size: Size, folder: str, clock: Clock, collate: Callable) -> Trainer:
    tokenizer = word_tokenizer(size)
    args = TrainingArguments(
        **options(folder),
        per_device_train_batch_size=size.rows,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    rows = [
        {"input_ids": [START, *tokenizer(row["text"])["input_ids"], EOS]}
        for row in documents(size, size.rows * STEPS * 2)
    ]
    return kind(model, args, train_dataset=Dataset.from_list(rows), data_collator=collate, callbacks=[clock])


ARMS = {"ours": ours, "same_loss": same, "stock": stock}


def seconds_per_step(arm: str, size: Size, device: str) -> float:
    """One short training run."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        ARMS[arm](size, folder, device, clock).train()
    return clock.seconds


def in_one_process(size: Size, device: str, budget: float) -> Times:
    """Seconds per step of each arm, arms taking turns."""
    times: Times = {arm: [] for arm in ARMS}
    calls = {arm: lambda arm=arm: times[arm].append(seconds_per_step(arm, size, device)) for arm in ARMS}
    interleave_calls(calls, budget, warm_up=0, least=3)
    return times


def processes(arm: str, size: Size, count: int, *, together: bool) -> float:
    """Seconds per step of `count` processes with one thread each: as one run (`together`) or each on its own."""
    command = [sys.executable, str(Path(__file__)), "--size", size.name, "--worker", arm]
    if together:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        commands = [[sys.executable, *launcher, *command[1:]]]
    else:
        commands = [command] * count
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True, env=environment) for c in commands]
    outputs = [process.communicate()[0] for process in running]
    found = [
        json.loads(line)["seconds"]
        for output in outputs
        for line in output.splitlines()
        if line.startswith('{"seconds"')
    ]
    return statistics.mean(found)


def scaling(size: Size, rounds: int) -> Times:
    """Seconds per step of one process, of two that train together, and of two that know nothing of each other."""
    times: Times = {f"{arm}_{kind}": [] for arm in ("ours", "stock") for kind in ("one", "two", "apart")}
    for _ in range(rounds):
        for arm in ("ours", "stock"):
            times[f"{arm}_one"].append(processes(arm, size, 1, together=False))
            times[f"{arm}_two"].append(processes(arm, size, 2, together=True))
            times[f"{arm}_apart"].append(processes(arm, size, 2, together=False))
    return times


def worker(args: argparse.Namespace) -> None:
    """One process of `scaling`: train and print the seconds of a step."""
    found = seconds_per_step(args.worker, chosen_size(args.size, "cpu", ROWS), "cpu")
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"seconds": found}), flush=True)


def main() -> None:
    """Measure, print and store."""
    flags = parser(__doc__, SIZES)
    flags.add_argument("--budget", type=float, help="seconds for the arms in one process; 100 with --quick, or 400")
    flags.add_argument("--rounds", type=int, help="of runs in several processes; 1 with --quick, or 3")
    flags.add_argument("--no_processes", action="store_true", help="leave out the runs in several processes")
    flags.add_argument("--worker", choices=list(ARMS), help=argparse.SUPPRESS)
    args = parse(flags)
    if args.worker:
        return worker(args)
    del args.worker
    size = chosen_size(args.size, args.device, ROWS)
    times = in_one_process(size, args.device, args.budget or (100 if args.quick else 400))
    ratios = {
        "trainer_time_over_same_loss": time_ratio(times, "ours", "same_loss"),
        "trainer_time_over_stock": time_ratio(times, "ours", "stock"),
    }
    if args.device == "cpu" and not args.no_processes:
        scaled = scaling(size, args.rounds or (1 if args.quick else 3))
        times |= scaled
        for arm in ("ours", "stock"):
            one, two, apart = (np.array(scaled[f"{arm}_{kind}"]) for kind in ("one", "two", "apart"))
            ratios[f"{arm}_two_processes_speed"] = Spread.of((2 * one / two).tolist())
            ratios[f"{arm}_two_over_what_the_cores_allow"] = Spread.of((apart / two).tolist())
    table("Seconds per step", ("arm", "median"), [(name, statistics.median(found)) for name, found in times.items()])
    finish("trainer", args, ratios, size, times)
    return None


if __name__ == "__main__":
    main()
