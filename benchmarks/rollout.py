"""What sampling with deletions costs: ours against model.generate, continuous batching, and other libraries."""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from decode_step import bandwidth, step_ratios, step_times
from measure import Spread, synchronize
from report import console, finish, parse, parser, table
from resubmission import Resubmission
from torch import Tensor
from transformers import LlamaForCausalLM
from workload import BACKSPACE, EOS, SIZES, Size, chosen_size, text

from sequencematch.rollouts import HFRolloutEngine, SamplingConfig

Outcome = tuple[int, float]
"""Actions taken and seconds it took."""


@dataclass(frozen=True)
class Load:
    """What is sampled: prompts of up to `prompt` tokens, completions of `mean` on average, cut at `most`."""

    batch: int
    prompts: int
    prompt: int
    mean: int
    most: int
    equal: int
    """Tokens of every prompt and half of the actions of every completion of the equal workload."""
    positions: tuple[int, ...]
    """String lengths at which a step is timed."""
    rival_prompts: int
    """Prompts that a library which completes one at a time gets in a round; none are installed for 0."""
    long: tuple[int, int, int]
    """Against those: our prompts, and the tokens of all completions on average and at most."""


LOADS = {
    "tiny": Load(8, 24, 32, 16, 48, 24, (32, 96), 2, (24, 16, 48)),
    "cpu": Load(32, 64, 128, 32, 128, 48, (128, 512, 1024, 2048), 2, (96, 64, 192)),
    "gpu": Load(32, 128, 256, 64, 256, 128, (128, 512, 1024, 2048), 0, (128, 64, 256)),
}
QUICK = {"cpu": {"mean": 16, "most": 64, "equal": 24, "rival_prompts": 1}}


class Bench:
    """One model whose chances to end and to delete can be set, and its arms."""

    def __init__(self, size: Size, load: Load, device: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.size, self.load, self.device = size, load, device
        self.round = 0
        config = size.config()
        config.max_position_embeddings = max(4 * load.most, max(load.positions)) + 64
        config.initializer_range = 0.02
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(device=device, dtype=getattr(torch, size.dtype)).eval()
        bias = torch.zeros(size.vocab, device=device, dtype=model.dtype)
        model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
        self.model, self.stock = model, copy.deepcopy(model)
        self.ragged, self.long = (self._prompts(count, rng) for count in (load.prompts, load.long[0]))
        self.equal = [text(load.equal, size.vocab, rng).tolist() for _ in range(load.batch)]
        self.probe = self._spread()
        self.engine = HFRolloutEngine(model, size.space, batch_size=load.batch)

    def _prompts(self, count: int, rng: np.random.Generator) -> list[list[int]]:
        lengths = rng.integers(self.load.prompt // 8, self.load.prompt + 1, count)
        return [text(int(length), self.size.vocab, rng).tolist() for length in lengths]

    @torch.no_grad()
    def _spread(self) -> float:
        """The log of the sum over actions of exp(logit), on average: what a bias must be measured against."""
        ids = torch.tensor([prompt[: self.load.prompt // 8] for prompt in self.ragged], device=self.device)
        return float(self.stock(input_ids=ids).logits[:, -1].float().logsumexp(-1).mean())

    def bias(self, ends: float, deletes: float) -> Tensor:
        """What makes `<eos>` and the backspace so likely, about, at every state; float [V]."""
        rest = self.probe - math.log(1 - ends - deletes)
        found = torch.zeros(self.size.vocab)
        for token, chance in ((EOS, ends), (BACKSPACE, deletes)):
            found[token] = math.log(chance) + rest if chance else -1e4
        return found

    def set(self, ends: float, deletes: float) -> None:
        """Make both models so."""
        bias = self.bias(ends, deletes)
        self.model.lm_head.bias.data.copy_(bias)
        self.stock.lm_head.bias.data.copy_(bias)

    def seed(self) -> int:
        """Another for each run."""
        self.round += 1
        return self.round

    def warm_up(self) -> None:
        """A little of everything, so that code and memory are there."""
        some = self.equal[: self.load.batch]
        for cache in (None, "static"):
            self.generate(some, 4, 0.0, cache)
        self.ours(some, 4, 0.0, 0.1)
        self.resubmission(some[:4], 4, 0.0, 0.1)

    def ours(self, prompts: Sequence[list[int]], most: int, ends: float, deletes: float) -> Outcome:
        """Our engine."""
        self.set(ends, deletes)
        config = SamplingConfig(max_completion_length=most, seed=self.seed())
        with timed() as clock:
            rollouts = self.engine.rollout(prompts, config)
        return sum(len(rollout.trajectory) for rollout in rollouts), clock()

    def generate(self, prompts: Sequence[list[int]], most: int, ends: float, cache: str | None) -> Outcome:
        """`model.generate` without deletions, batch after batch, left-padded; what follows an end does not count."""
        self.set(ends, 0.0)
        torch.manual_seed(self.seed())
        actions = 0
        with timed() as clock:
            for start in range(0, len(prompts), self.load.batch):
                batch = prompts[start : start + self.load.batch]
                width = max(map(len, batch))
                ids = torch.tensor([[0] * (width - len(one)) + one for one in batch], device=self.device)
                output = self.stock.generate(
                    ids,
                    attention_mask=(ids != 0).long(),
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=most,
                    pad_token_id=0,
                    cache_implementation=cache,
                    disable_compile=True,
                )
                actions += int((output[:, width:] != 0).sum())
        return actions, clock()

    def resubmission(self, prompts: Sequence[list[int]], most: int, ends: float, deletes: float) -> Outcome:
        """transformers' continuous batching, the backspace a stop token."""
        self.set(ends, deletes)
        torch.manual_seed(self.seed())
        arm = Resubmission(self.stock, EOS, BACKSPACE, most, self.load.batch)
        found = arm.round([list(prompt) for prompt in prompts])
        return found["actions"], found["seconds"]


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Gives a clock that tells the seconds inside."""
    synchronize()
    start = time.perf_counter()
    ends: list[float] = []
    yield lambda: ends[0] - start
    synchronize()
    ends.append(time.perf_counter())


Arms = dict[str, Callable[[], Outcome]]


def interleave(arms: Arms, budget: float, least: int = 2, most: int = 20) -> dict[str, list[Outcome]]:
    """Outcomes of the arms in turns, A B C A B C."""
    found: dict[str, list[Outcome]] = {name: [] for name in arms}
    start, longest = time.perf_counter(), 0.0
    for count in range(most):
        began = time.perf_counter()
        if count >= least and began - start + longest > budget:
            break
        for name, run in arms.items():
            found[name].append(run())
        longest = max(longest, time.perf_counter() - began)
    rows = [
        (name, len(runs), Spread.of([a / s for a, s in runs]).median, sum(a for a, _ in runs) / len(runs))
        for name, runs in found.items()
    ]
    table("Sampling", ("arm", "rounds", "actions/s", "actions a round"), rows)
    return found


def speed_ratio(found: dict[str, list[Outcome]], ours: str, theirs: str) -> Spread:
    """Our actions per second over theirs, paired by round."""
    pairs = zip(found[ours], found[theirs], strict=True)
    return Spread.of([(a / s) / (b / t) for (a, s), (b, t) in pairs])


def sampling_arms(bench: Bench, quick: bool) -> tuple[Arms, Arms]:
    """The ragged and the equal workload's."""
    load, ends = bench.load, 1 / bench.load.mean
    equal = 2 * load.equal
    caches: dict[str, str | None] = {"dynamic": None} | ({} if quick else {"static": "static"})
    ragged: Arms = {
        f"generate_{name}": lambda c=cache: bench.generate(bench.ragged, load.most, ends, c)
        for name, cache in caches.items()
    }
    for percent in (0, 5, 20):
        ragged[f"ours_{percent}"] = lambda p=percent: bench.ours(bench.ragged, load.most, ends, p / 100)
    ragged["continuous_batching_5"] = lambda: bench.resubmission(bench.ragged, load.most, ends, 0.05)
    even: Arms = {
        f"generate_{name}": lambda c=cache: bench.generate(bench.equal, equal, 0.0, c) for name, cache in caches.items()
    }
    even["ours"] = lambda: bench.ours(bench.equal, equal, 0.0, 0.0)
    return ragged, even


def faster(found: dict[str, list[Outcome]]) -> str:
    """The faster of the two caches of `generate`."""
    names = [name for name in found if name.startswith("generate")]
    return max(names, key=lambda name: statistics.median(a / s for a, s in found[name]))


def against_rivals(bench: Bench, folder: Path, budget: float) -> tuple[dict[str, Spread], dict[str, Any]]:
    """Our engine at 5% backspaces against libraries that complete one prompt at a time."""
    load = bench.load
    _, mean, most = load.long
    prompts = bench.long
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        plain = copy.deepcopy(bench.stock)
        plain.lm_head.bias = None
        plain.save_pretrained(Path(place) / "model")
        torch.save(bench.bias(1 / mean, 0.05), Path(place) / "bias.pt")
        job = rivals.Job(
            str(Path(place) / "model"), str(Path(place) / "bias.pt"), prompts, most, EOS, BACKSPACE,
            torch.get_num_threads(),
        )  # fmt: skip
        arms: Arms = {"ours_5": lambda: bench.ours(prompts, most, 1 / mean, 0.05)}
        for name in rivals.RIVALS:
            child = stack.enter_context(rivals.Rival(name, rivals.environment(name, folder), job))
            child.round(1, 0)

            def run(child: rivals.Rival = child) -> Outcome:
                found = child.round(load.rival_prompts, bench.seed())
                return found["actions"], found["seconds"]

            arms[name] = run
        found = interleave(arms, budget)
    return {f"vs_{name}": speed_ratio(found, "ours_5", name) for name in rivals.RIVALS}, found


def measure(args: argparse.Namespace) -> None:
    """Everything, printed and stored."""
    size = chosen_size(args.size, args.device)
    load = LOADS[size.name]
    if args.quick:
        load = replace(load, **QUICK.get(size.name, {}))
    bench = Bench(size, load, args.device, args.seed)
    console.print(f"{size}\n{load}")
    budget = args.budget or (90.0 if args.quick else 600.0)
    ragged, equal = sampling_arms(bench, args.quick)
    bench.warm_up()
    ratios: dict[str, Spread] = {}
    uneven = interleave(ragged, 0.6 * budget)
    even = interleave(equal, 0.15 * budget)
    ratios["vs_generate_ragged"] = speed_ratio(uneven, "ours_0", faster(uneven))
    ratios["vs_generate_equal"] = speed_ratio(even, "ours", faster(even))
    ratios["vs_continuous_batching_5"] = speed_ratio(uneven, "ours_5", "continuous_batching_5")
    for name in ("ours_5", "ours_20"):
        ratios[f"time_per_action_{name[5:]}_over_0"] = speed_ratio(uneven, "ours_0", name)
    samples: dict[str, Any] = {"ragged": uneven, "equal": even}
    if load.rival_prompts and not args.no_rivals:
        found, samples["rivals"] = against_rivals(bench, args.rivals, 0.15 * budget)
        ratios |= found
    steps = step_times(bench.model, load.batch, load.positions, 5 if args.quick else 15)
    ratios |= step_ratios(steps)
    speed = bandwidth(args.device)
    shares = {length: found["bytes"] / speed / found["step"] for length, found in steps.items()}
    table(
        "A step of the whole batch",
        ("string length", "ms", "of it attention alone", "share of the memory bound"),
        [(str(n), 1e3 * one["step"], 1e3 * one["attention"], shares[n]) for n, one in steps.items()],
    )
    finish(
        "rollout",
        args,
        ratios,
        size,
        samples,
        load=vars(load),
        steps=steps,
        bandwidth=speed,
        share_of_memory_bound=shares,
    )


def main() -> None:
    """Read the options and measure."""
    options = parser(__doc__, list(SIZES))
    options.add_argument("--budget", type=float, help="seconds of sampling, about; 90 if quick, 600 otherwise")
    options.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    options.add_argument(
        "--rivals", type=Path, default=Path(".venv-rivals"), help="where other libraries are installed"
    )
    options.add_argument("--no_rivals", action="store_true", help="leave them out, and install nothing")
    measure(parse(options))


if __name__ == "__main__":
    main()
