"""Cost per node and peak memory from 2k to 32k nodes in a batch; on a GPU also flex against dense. See README.md."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from arms import Bench
from measure import MIB, Arm, Spread, Times, interleave_calls, peak_memory
from report import console, finish, parse, parser, table
from workload import SIZES, Size, chosen_size, document, expert

NODES = (2048, 4096, 8192, 16384, 32768)


def chosen(args: argparse.Namespace) -> Size:
    """A shallow model: what is asked is how cost grows with nodes, and depth only multiplies it."""
    if args.device == "cuda":
        return replace(chosen_size(args.size, "cuda"), layers=4, row=args.length)
    return replace(chosen_size(args.size or "tiny", "cpu"), layers=2, row=args.length)


def arm_of(bench: Bench, nodes: int, rng: np.random.Generator) -> Arm:
    """SequenceMatch on as many documents as make `nodes` nodes."""
    size = bench.size
    documents = [document(size.row, size.vocab, rng) for _ in range(nodes // size.row)]
    return bench.tree(f"{nodes}", [expert(tokens) for tokens in documents])


def linear_fit(nodes: list[int], peaks: list[int]) -> dict[str, float]:
    """Peak memory as a line over nodes, and how far from it the measurements are at most."""
    slope, intercept = np.polyfit(nodes, peaks, 1)
    off = np.abs(np.polyval((slope, intercept), nodes) / np.array(peaks) - 1)
    return {
        "kib_per_node": float(slope / 1024),
        "intercept_mib": float(intercept / MIB),
        "largest_deviation": float(off.max()),
    }


def growth(args: argparse.Namespace, size: Size) -> tuple[dict[str, Spread], dict]:
    """Time per node at each size of batch, in turns, and the peaks."""
    bench, rng = Bench(size, args.device), np.random.default_rng(0)
    arms = {nodes: arm_of(bench, nodes, rng) for nodes in NODES}
    budget = 60.0 if args.quick else 300.0
    times = interleave_calls({arm.name: arm.backward for arm in arms.values()}, budget, least=2 if args.quick else 5)
    peaks = []
    for arm in arms.values():
        arm.optimizer.zero_grad(set_to_none=True)
        peaks.append(peak_memory(arm.backward, args.device))
        arm.optimizer.zero_grad(set_to_none=True)
    per_node = {n: [1e6 * seconds / n for seconds in times[f"{n}"]] for n in NODES}
    rows = [(f"{n:,}", Spread.of(per_node[n]).median, peak / MIB) for n, peak in zip(NODES, peaks, strict=True)]
    table(f"Documents of {size.row} tokens, {size.layers} layers", ("nodes", "us per node", "peak, MiB"), rows)
    fit = linear_fit(list(NODES), peaks)
    console.print(fit)
    ratios = {
        f"cost_per_node_{n // 1024}k_over_2k": Spread.of(
            [a / b for a, b in zip(per_node[n], per_node[NODES[0]], strict=True)]
        )
        for n in NODES[1:]
    }
    deviation = fit["largest_deviation"]
    ratios["memory_deviation_from_line"] = Spread(deviation, deviation, deviation)
    return ratios, {"us_per_node": per_node, "peak_bytes": peaks, "memory_fit": fit}


def flex_against_dense(args: argparse.Namespace, size: Size) -> tuple[dict[str, Spread], dict]:
    """The same steps with either attention, from 1k nodes on; dense is left out where it does not fit."""
    benches = {name: Bench(size, args.device, name) for name in ("flex", "dense")}
    ratios: dict[str, Spread] = {}
    seconds: dict[str, Times] = {}
    for nodes in (max(1024, size.row), *(n for n in NODES if n > size.row)):
        calls = {name: arm_of(bench, nodes, np.random.default_rng(0)).backward for name, bench in benches.items()}
        try:
            times = interleave_calls(calls, 20.0, warm_up=2)
        except torch.cuda.OutOfMemoryError:
            console.print(f"{nodes} nodes do not fit")
            continue
        seconds[f"{nodes}"] = times
        pairs = zip(times["dense"], times["flex"], strict=True)
        ratios[f"flex_vs_dense_{nodes // 1024}k"] = Spread.of([dense / flex for dense, flex in pairs])
    return ratios, {"seconds": seconds}


def main() -> None:
    """Read the options and measure."""
    options = parser(__doc__, list(SIZES))
    options.add_argument("--length", type=int, default=256, help="tokens in a document")
    args = parse(options)
    size = chosen(args)
    console.print(f"{size}")
    ratios, details = growth(args, size)
    if args.device == "cuda":
        more, found = flex_against_dense(args, size)
        ratios, details = ratios | more, details | {"flex_against_dense": found}
    finish("scaling", args, ratios, size, details)


if __name__ == "__main__":
    main()
