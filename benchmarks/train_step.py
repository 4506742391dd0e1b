"""Paired times of training steps: transformers, TRL, the paper's re-feeding scheme, and ours. See README.md."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from arms import Bench, behavioural_cloning, chi2_mixture
from flops import peak_flops, step_flops
from measure import PARTS, Arm, Spread, Times, breakdown, interleave, speed_ratio, time_ratio
from report import console, finish, parse, parser, table
from workload import (
    SIZES,
    Size,
    actions_of,
    chosen_size,
    document,
    expert,
    mistaken,
    shared_prompts,
    walks,
    with_mistakes,
)

from sequencematch.rollouts import ReplayBuffer

Ratios = dict[str, Spread]
PLAIN = ("hf", "mle", "bc", "sequencematch")
"""The arms that do the same work on the same documents."""
TINY_BUDGET = 1.5
"""Seconds of measurement for each of the groups in `tiny_ratios`."""


def same_tokens(bench: Bench, rng: np.random.Generator, quick: bool) -> dict[str, Arm]:
    """The arms on the very same full documents.

    `_10` are the same documents with mistakes in them, so that 10% of the actions are backspaces, and `mixture` as many
    rollouts besides. `quick` leaves out `bc_10`.
    """
    size = bench.size
    documents = [document(size.row, size.vocab, rng) for _ in range(size.rows)]
    clean = [expert(tokens) for tokens in documents]
    noised = [with_mistakes(tokens, 0.1, size.vocab, rng) for tokens in documents]
    buffer = ReplayBuffer(4 * size.rows)
    buffer.extend(walks(documents * 4, size.vocab, rng))
    arms = [
        bench.hf(documents),
        bench.trl(documents),
        bench.tree("mle", clean, behavioural_cloning, space=size.plain_space),
        bench.tree("bc", clean, behavioural_cloning),
        bench.tree("sequencematch", clean),
        bench.tree("sequencematch_10", noised),
        bench.tree("mixture", clean, chi2_mixture, buffer=buffer, work=2 * actions_of(clean)),
    ]
    if not quick:
        arms.append(bench.tree("bc_10", noised, behavioural_cloning))
    return {arm.name: arm for arm in arms}


def ragged(bench: Bench, rng: np.random.Generator) -> dict[str, Arm]:
    """Documents of one eighth of a row to a whole one; transformers pads them to the longest."""
    size = bench.size
    lengths = rng.integers(size.row // 8, size.row + 1, 2 * size.rows)
    documents = [document(int(length), size.vocab, rng) for length in lengths]
    arms = [bench.hf(documents, "hf_ragged"), bench.tree("sequencematch_ragged", [expert(d) for d in documents])]
    return {arm.name: arm for arm in arms}


def against_refeed(bench: Bench, which: str, rng: np.random.Generator) -> dict[str, Arm]:
    """Ours and the paper's scheme on the same demonstrations: `10` or `30` per cent backspaces, or `shared_prompt`."""
    size = bench.size
    if which == "shared_prompt":
        found = shared_prompts(size, rng)
    else:
        found = mistaken(size.rows, size.row, int(which) / 100, size.vocab, rng)
    arms = [
        bench.tree(f"ours_{which}", found),
        bench.refeed(f"refeed_{which}", found),
        bench.refeed(f"refeed_{which}_same_head", found, our_head=True),
    ]
    return {arm.name: arm for arm in arms}


def check_same_loss(arms: dict[str, Arm], tolerance: float) -> None:
    """Stop unless transformers, TRL and our likelihood give the same loss per token on equal weights."""
    hf, trl = (float(arms[name].loss(arms[name].collate()).detach()) for name in ("hf", "trl"))
    mle = arms["mle"]
    batch = mle.collate()
    ours = float(mle.loss(batch).detach()) * len(batch.length) / mle.work
    if not all(math.isclose(hf, other, rel_tol=tolerance) for other in (trl, ours)):
        raise SystemExit(f"the arms do not compute the same loss: transformers {hf}, TRL {trl}, ours {ours}")


def plain_ratios(times: Times, arms: dict[str, Arm]) -> Ratios:
    """Throughput of ours over that of transformers."""
    ours = [name for name in PLAIN if name != "hf"]
    return {f"{name}_vs_hf": speed_ratio(times, arms[name], arms["hf"]) for name in ours}


def further_ratios(times: Times, arms: dict[str, Arm]) -> Ratios:
    """Throughput of ours over that of TRL, and time over transformers' where there is more to do."""
    longer = [name for name in times if name == "mixture" or name.endswith("_10")]
    return {
        "sequencematch_vs_trl": speed_ratio(times, arms["sequencematch"], arms["trl"]),
        "trl_vs_hf": speed_ratio(times, arms["trl"], arms["hf"]),
        **{f"{name}_time_vs_hf": time_ratio(times, name, "hf") for name in longer},
    }


def refeed_ratios(times: Times, arms: dict[str, Arm], which: str) -> Ratios:
    """Actions per second of ours over the paper's scheme with full logits, and with our head."""
    ours, full, same = arms.values()
    name = "vs_refeed_" + which
    return {name: speed_ratio(times, ours, full), f"{name}_same_head": speed_ratio(times, ours, same)}


def print_times(title: str, times: Times, arms: dict[str, Arm], size: Size) -> None:
    """A table of median milliseconds, work per second, and floating-point operations per second."""
    rows = []
    for name, seconds in times.items():
        spread = Spread.of(seconds)
        work = arms[name].work
        rows.append((name, 1e3 * spread.median, 1e3 * spread.low, 1e3 * spread.high, work, work / spread.median))
    columns = ("arm", "ms", "lower quartile", "upper", "tokens or actions", "per second")
    table(f"{title} ({len(next(iter(times.values())))} rounds, {size.name} model)", columns, rows)


def explain(arms: dict[str, Arm], names: Sequence[str], budget: float) -> dict[str, dict[str, float]]:
    """Where the steps of these arms spend their time, printed and returned in seconds."""
    found = {name: breakdown(arms[name], budget) for name in names}
    parts = (*PARTS, "step")
    table("Parts of a step, ms", ("part", *names), [(p, *(1e3 * found[n][p] for n in names)) for p in parts])
    return found


def utilisation(times: Times, arms: dict[str, Arm], size: Size, device: str) -> dict[str, dict[str, float | None]]:
    """Model operations per second of the arms on full documents, and their share of what the device can do."""
    peak = peak_flops(device)
    operations = step_flops(size, [size.row] * size.rows)
    found = {}
    for name in PLAIN:
        rate = operations / Spread.of(times[name]).median
        found[name] = {"tflops": rate / 1e12, "mfu": rate / peak if peak else None}
    rows = [(name, rate["tflops"], "" if rate["mfu"] is None else f"{rate['mfu']:.1%}") for name, rate in found.items()]
    table("Model operations (recomputation not counted)", ("arm", "TFLOP/s", "of the device's peak"), rows)
    return found


def measure(args: argparse.Namespace) -> None:
    """Everything, printed and stored."""
    size = chosen_size(args.size, args.device, args.rows)
    if args.quick and args.device == "cpu":
        size = replace(size, rows=args.rows or 2, prompts=1)
    budget = args.budget or (210.0 if args.quick else 820.0)
    rng = np.random.default_rng(args.seed)
    bench = Bench(size, args.device, args.attention)
    console.print(f"{size}")

    arms = same_tokens(bench, rng, args.quick)
    check_same_loss(arms, 1e-4 if size.dtype == "float32" else 2e-2)
    # Two groups, so that the arms that are compared most closely have the most rounds.
    times = interleave([arms[name] for name in PLAIN], budget=0.24 * budget)
    print_times("The same documents", times, arms, size)
    ratios = plain_ratios(times, arms)
    rates = utilisation(times, arms, size, args.device)
    more = interleave([arm for name, arm in arms.items() if name not in ("mle", "bc")], budget=0.26 * budget)
    print_times("The same documents, further arms", more, arms, size)
    ratios |= further_ratios(more, arms)
    samples = {"same": times, "further": more}
    parts = explain(arms, ("hf", "trl", "sequencematch"), 0.06 * budget)
    share = parts["sequencematch"]["collation"] / parts["sequencematch"]["step"]
    ratios["collation_share"] = Spread(share, share, share)

    arms = ragged(bench, rng)
    uneven = interleave(list(arms.values()), budget=0.09 * budget)
    print_times("Documents of uneven length", uneven, arms, size)
    ratios["sequencematch_vs_hf_ragged"] = speed_ratio(uneven, arms["sequencematch_ragged"], arms["hf_ragged"])
    samples["ragged"] = uneven

    for which, part in (("10", 0.11), ("30", 0.11), ("shared_prompt", 0.13)):
        arms = against_refeed(bench, which, rng)
        paired = interleave(list(arms.values()), budget=part * budget)
        print_times(f"Re-feeding: {which}", paired, arms, size)
        ratios |= refeed_ratios(paired, arms, which)
        samples[f"refeed_{which}"] = paired
    finish("train_step", args, ratios, size, samples, parts=parts, model_operations=rates)


def tiny_ratios() -> dict[str, float]:
    """Median ratios of the smallest model in a few seconds, for a regression test: throughput, ours over theirs.

    On one thread, which a busy machine disturbs least. It runs neither TRL nor mixtures.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _tiny_ratios(SIZES["tiny"])
    finally:
        torch.set_num_threads(threads)


def _tiny_ratios(size: Size) -> dict[str, float]:
    rng = np.random.default_rng(0)
    bench = Bench(size, "cpu")
    documents = [document(size.row, size.vocab, rng) for _ in range(size.rows)]
    pair = {"hf": bench.hf(documents), "sequencematch": bench.tree("sequencematch", [expert(d) for d in documents])}
    times = interleave(list(pair.values()), budget=TINY_BUDGET, least=5)
    ratios = {"sequencematch_vs_hf": speed_ratio(times, pair["sequencematch"], pair["hf"])}
    for which in ("30", "shared_prompt"):
        arms = against_refeed(bench, which, rng)
        ratios |= refeed_ratios(interleave(list(arms.values()), budget=TINY_BUDGET, least=5), arms, which)
    return {name: ratio.median for name, ratio in ratios.items()}


def main() -> None:
    """Read the options and measure."""
    options = parser(__doc__, list(SIZES))
    options.add_argument("--rows", type=int, help="documents per batch")
    options.add_argument("--budget", type=float, help="seconds of measurement, about; 210 if quick, 820 otherwise")
    options.add_argument("--attention", default="auto", choices=["auto", "tiled", "flex", "dense"], help="of our arms")
    options.add_argument("--seed", type=int, default=0, help="of the documents")
    measure(parse(options))


if __name__ == "__main__":
    main()
