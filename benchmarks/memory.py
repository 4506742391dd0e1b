"""Peak memory of a training step: transformers, TRL and ours, at two vocabularies. See README.md."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import numpy as np
from arms import Bench, behavioural_cloning, chi2_mixture
from measure import MIB, Arm, Spread, peak_memory
from report import console, finish, parse, parser, table
from torch import nn
from workload import SIZES, Size, actions_of, chosen_size, document, expert, walks

from sequencematch.rollouts import ReplayBuffer

VOCABULARIES = {"32k": 32_768, "128k": 131_072}
Peaks = dict[str, list[int]]


def make_arms(bench: Bench, rows: int, length: int) -> list[Arm]:
    """The arms on `rows` full documents of `length` tokens."""
    size, rng = bench.size, np.random.default_rng(0)
    documents = [document(length, size.vocab, rng) for _ in range(rows)]
    clean = [expert(tokens) for tokens in documents]
    buffer = ReplayBuffer(rows)
    buffer.extend(walks(documents, size.vocab, rng))
    return [
        bench.hf(documents),
        bench.trl(documents),
        bench.tree("mle", clean, behavioural_cloning, space=size.plain_space),
        bench.tree("sequencematch", clean),
        bench.tree("mixture", clean, chi2_mixture, buffer=buffer, work=2 * actions_of(clean)),
    ]


def step_peaks(size: Size, device: str, repetitions: int) -> tuple[Peaks, int]:
    """Bytes beyond the resting ones at each arm's peak, arms in turns; and the bytes of the weights.

    A short batch first loads whatever is loaded lazily, so that it is not counted.
    """
    bench = Bench(size, device)
    for arm in make_arms(bench, 1, 16):
        arm.backward()
        arm.optimizer.zero_grad(set_to_none=True)
    arms = make_arms(bench, size.rows, size.row)
    peaks: Peaks = {arm.name: [] for arm in arms}
    for _ in range(repetitions):
        for arm in arms:
            peaks[arm.name].append(peak_memory(arm.backward, device))
            arm.optimizer.zero_grad(set_to_none=True)
    return peaks, weight_bytes(bench.stock)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, tied ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def vocabulary_ratios(peaks: Peaks, weights: int, label: str) -> dict[str, Spread]:
    """Ours over transformers': `peak_memory` beyond the weights, `training_memory` with weights and AdamW's state."""
    ratios = {}
    for name, ours in (("", "sequencematch"), ("mle_", "mle"), ("mixture_", "mixture"), ("trl_", "trl")):
        pairs = list(zip(peaks[ours], peaks["hf"], strict=True))
        ratios[f"{name}peak_memory_vs_hf_{label}"] = Spread.of([a / b for a, b in pairs])
        total = [(a + 3 * weights) / (b + 3 * weights) for a, b in pairs]
        ratios[f"{name}training_memory_vs_hf_{label}"] = Spread.of(total)
    against_trl = zip(peaks["sequencematch"], peaks["trl"], strict=True)
    return ratios | {f"peak_memory_vs_trl_{label}": Spread.of([a / b for a, b in against_trl])}


def show(peaks: Peaks, weights: int, size: Size, label: str) -> None:
    """A table in MiB."""
    medians = {name: statistics.median(found) / MIB for name, found in peaks.items()}
    held = weights / MIB
    rows = [(name, peak, peak + held, peak + 3 * held) for name, peak in medians.items()]
    title = f"Vocabulary {label}, {size.rows} x {size.row} tokens, weights {held:,.0f} MiB ({size.name} model)"
    table(title, ("arm", "step, MiB", "with weights", "with weights and AdamW"), rows)


def measure(args: argparse.Namespace) -> None:
    """Everything, printed and stored."""
    size = chosen_size(args.size, args.device)
    ratios: dict[str, Spread] = {}
    details: dict[str, dict] = {}
    for label in args.vocabularies:
        sized = replace(size, vocab=VOCABULARIES[label])
        console.print(f"{sized}")
        peaks, weights = step_peaks(sized, args.device, 1 if args.quick else 3)
        show(peaks, weights, sized, label)
        ratios |= vocabulary_ratios(peaks, weights, label)
        details[label] = {"weights": weights, "step_peaks": peaks}
    finish("memory", args, ratios, size, details)


def main() -> None:
    """Read the options and measure."""
    options = parser(__doc__, list(SIZES))
    options.add_argument(
        "--vocabularies", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES), help="to measure"
    )
    measure(parse(options))


if __name__ == "__main__":
    main()
