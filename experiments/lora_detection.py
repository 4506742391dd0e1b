"""Does LoRA learn to tell wrong tokens from right ones as well as full fine-tuning does?

On the demo's arithmetic: from one MLE checkpoint for each seed, the same steps on the same data with the model's own
mistakes, all weights or adapters (and the rows of <bksp>). Detection is measured on held-out questions with one wrong
token of the checkpoint planted at every state: the probability of deleting there, and at the right states.

    python experiments/lora_detection.py --output docs/results
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu, t

from sequencematch.data import tokenize_dataset
from sequencematch.data.examples import Example
from sequencematch.demo.arm import use_one_thread
from sequencematch.demo.recipes import load_recipes
from sequencematch.evaluation import evaluate_mode
from sequencematch.models import action_space, evaluate_states, layout_of, load_model, load_tokenizer, prepare_model
from sequencematch.noise import ModelNoise, demonstrate
from sequencematch.tasks import split
from sequencematch.training.metrics import deletion_probabilities
from sequencematch.training.run import Run, make_task, make_trainer
from sequencematch.tree import collate_trajectories

MODES = ("sampled", "sampled_no_deletion", "greedy", "greedy_exclude")
PLANTED = 1000
"""Held-out questions in which mistakes are planted."""


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune."""

    name: str
    learning_rate: float
    rank: int | None = None
    """Of the adapters; None trains all weights."""

    def options(self) -> dict[str, Any]:
        """What it adds to the recipe's options."""
        found: dict[str, Any] = {"learning_rate": self.learning_rate}
        if self.rank is not None:
            adapters = {"use_peft": True, "lora_r": self.rank, "lora_alpha": self.rank}
            found |= adapters | {"lora_dropout": 0.0, "lora_target_modules": ["all-linear"]}
        return found


def sweep() -> list[Arm]:
    """All weights at the recipe's learning rate and twice that; two ranks at the recipe's rate and four times that."""
    found = [Arm(f"full, lr {rate}", rate) for rate in (1.5e-3, 3e-3)]
    found += [Arm(f"LoRA r={r}, lr {rate}", rate, r) for r in (8, 32) for rate in (1.5e-3, 6e-3)]
    return found


def chosen(results: list[dict]) -> list[Arm]:
    """Of the sweep on one seed, for all weights and for each rank the learning rate that detects best."""
    detection = {found["arm"]: found["after_wrong"] - found["after_right"] for found in results if found["seed"] == 0}
    ranks = dict.fromkeys(arm.rank for arm in sweep())
    return [max((a for a in sweep() if a.rank == rank), key=lambda arm: detection[arm.name]) for rank in ranks]


def recipe() -> Any:
    """The demo's arithmetic."""
    return next(found for found in load_recipes() if found.name == "arithmetic")


def options(arm: Arm | None, seed: int, folder: Path) -> dict[str, Any]:
    """The flat options of an arm's run, or of the checkpoint's (None)."""
    home = folder / f"seed{seed}"
    own = {"seed": seed, "dataset_num_proc": None}
    if arm is None:
        return recipe().options("pretrain", home) | own
    name = "".join(c if c.isalnum() else "_" for c in arm.name)
    return recipe().options("bc", home) | own | arm.options() | {"output_dir": str(home / name)}


def pretrain(seed: int, folder: Path) -> None:
    """The checkpoint from which all arms of a seed start."""
    trainer = make_trainer(Run.from_options(options(None, seed, folder)))
    trainer.train()
    trainer.save_model()


def run(arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
    """Train one arm and measure it."""
    parsed = Run.from_options(options(arm, seed, folder))
    trainer = make_trainer(parsed)
    trainer.train()
    rows = _test_rows(parsed)
    task = make_task(parsed.data)
    assert task is not None
    model, tokenizer, engine = trainer.model, trainer.processing_class, trainer.batches.engine
    accuracy = {
        mode: evaluate_mode(
            engine, tokenizer, rows, lambda p, _, c: task.is_correct(p, c), parsed.training.sampling(), mode
        )[0].as_dict()
        for mode in MODES
    }
    return {
        "arm": arm.name,
        "seed": seed,
        "rank": arm.rank,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "options": {key: value for key, value in options(arm, seed, folder).items() if key != "output_dir"},
        **measure_detection(model, tokenizer, trainer.space, seed, folder, rows[:PLANTED]),
        "accuracy": accuracy,
    }


def _test_rows(parsed: Run) -> list[dict]:
    task = make_task(parsed.data)
    assert task is not None
    return split(task, 0, parsed.data.test_size, parsed.data.task_seed)["test"].to_list()


def measure_detection(model: Any, tokenizer: Any, space: Any, seed: int, folder: Path, rows: list[dict]) -> dict:
    """P(delete) at planted wrong tokens and at right ones, and how well it ranks them (area under the ROC curve)."""
    from datasets import Dataset

    data = tokenize_dataset(Dataset.from_list(rows), tokenizer, space=space)
    examples = [Example.from_row(row) for row in data]
    batch = collate_trajectories(
        [demonstrate(e, m, space) for e, m in zip(examples, _mistakes(examples, seed, folder), strict=True)],
        space,
        layout_of(model),
    )
    model.eval()
    with torch.no_grad():
        wrong, right = deletion_probabilities(batch, evaluate_states(model, batch, space), space)
    order = mannwhitneyu(wrong.numpy(), right.numpy()).statistic / (len(wrong) * len(right))
    return {"after_wrong": float(wrong.mean()), "after_right": float(right.mean()), "auc": float(order)}


def _mistakes(examples: list[Example], seed: int, folder: Path) -> list:
    """The same for all arms of a seed: what the checkpoint itself would wrongly write at every state."""
    home = folder / f"seed{seed}" / "arithmetic" / "pretrain"
    checkpoint = load_model(str(home))
    prepare_model(checkpoint)
    # The checkpoint has no deletion token yet, so its vocabulary is smaller by one.
    noise = ModelNoise(checkpoint, action_space(checkpoint, load_tokenizer(str(home))), rate=1.0)
    return noise.mistakes(examples, np.random.default_rng(seed))


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95% interval over seeds (Student's t)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def summary(results: list[dict]) -> list[dict]:
    """Each chosen arm over the seeds; its gain in detection as a share of full fine-tuning's on the same seed.

    Before fine-tuning <bksp> is as likely after wrong tokens as after right ones, so the gain is all of the difference.
    """
    gain = {(found["arm"], found["seed"]): found["after_wrong"] - found["after_right"] for found in results}
    full, *_ = arms = chosen(results)
    rows = []
    for arm in arms:
        mine = [found for found in results if found["arm"] == arm.name]
        shares = [gain[arm.name, found["seed"]] / gain[full.name, found["seed"]] for found in mine]
        rows.append(
            {
                "arm": arm.name,
                "trained": mine[0]["trained"],
                **{key: interval([found[key] for found in mine]) for key in ("after_wrong", "after_right", "auc")},
                "share_of_full": interval(shares),
                "sampled": interval([found["accuracy"]["sampled"]["accuracy"] for found in mine]),
            }
        )
    return rows


def markdown(rows: list[dict]) -> str:
    """The table for docs/results."""
    names = (
        "arm",
        "weights trained",
        "P(delete), wrong",
        "P(delete), right",
        "AUC",
        "share of full's gain",
        "accuracy",
    )
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for row in rows:
        columns = (row[key] for key in ("after_wrong", "after_right", "auc", "share_of_full", "sampled"))
        cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in columns]
        lines.append(f"| {row['arm']} | {row['trained']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Sweep learning rates on the first seed, run the best on all seeds, and write lora_detection.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/lora_detection"), help="where models go")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where lora_detection.json goes")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    results: list[dict] = []
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn"), use_one_thread) as pool:
        list(pool.map(pretrain, range(args.seeds), [args.runs] * args.seeds))
        for seed in range(args.seeds):
            for job in [pool.submit(run, arm, seed, args.runs) for arm in (chosen(results) if seed else sweep())]:
                results.append(job.result())
                told = {key: results[-1][key] for key in ("arm", "seed", "after_wrong", "after_right", "auc")}
                print(json.dumps(told | {"sampled": results[-1]["accuracy"]["sampled"]["accuracy"]}), flush=True)
    rows = summary(results)
    details = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "sequencematch")},
    }
    text = json.dumps({**details, "summary": rows, "runs": results}, indent=1)
    (args.output / "lora_detection.json").write_text(text + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
