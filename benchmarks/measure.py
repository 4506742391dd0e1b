"""Paired times and peak memory of training steps."""

from __future__ import annotations

import ctypes
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MIB = 2**20
M_MMAP_THRESHOLD = -3
"""Of `malloc.h`."""


@dataclass
class Arm:
    """One way to do a training step. `work` is what its throughput counts, tokens or actions."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    collate: Callable[[], Any]
    loss: Callable[[Any], Tensor]
    work: int

    def backward(self) -> Tensor:
        """Collation, forward, loss and backward, from no gradients; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.collate())
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        """A whole training step."""
        loss = self.backward()
        self.optimizer.step()
        return loss


@dataclass
class Spread:
    """The median of paired ratios, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From one value per round."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median, low, high)

    def rounded(self) -> list[float]:
        """Median and quartiles, for the record."""
        return [float(f"{value:.4g}") for value in (self.median, self.low, self.high)]


Times = dict[str, list[float]]


def interleave(arms: Sequence[Arm], *, budget: float, warm_up: int = 1, least: int = 2, most: int = 40) -> Times:
    """Seconds of each arm's steps. Arms take turns, A B C A B C: what slows the machine down slows all of them.

    Runs at least `least` rounds after the warm-up, and more as long as `budget` seconds and `most` rounds allow.
    """
    return interleave_calls({arm.name: arm.step for arm in arms}, budget, warm_up, least, most)


def interleave_calls(
    calls: dict[str, Callable[[], Any]], budget: float, warm_up: int = 1, least: int = 2, most: int = 40
) -> Times:
    """`interleave` for any functions."""
    start = time.perf_counter()
    for _ in range(warm_up):
        for call in calls.values():
            call()
    times: Times = {name: [] for name in calls}
    longest = 0.0
    for count in range(most):
        began = time.perf_counter()
        if count >= least and began - start + longest > budget:
            break
        for name, call in calls.items():
            times[name].append(seconds(call))
        longest = max(longest, time.perf_counter() - began)
        gc.collect()
    return times


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes, the device's queue drained before and after."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_ratio(times: Times, ours: str, theirs: str) -> Spread:
    """Our time over theirs, paired by round."""
    return Spread.of([a / b for a, b in zip(times[ours], times[theirs], strict=True)])


def speed_ratio(times: Times, ours: Arm, theirs: Arm) -> Spread:
    """Our work per second over theirs, paired by round."""
    work = ours.work / theirs.work
    return Spread.of([work * b / a for a, b in zip(times[ours.name], times[theirs.name], strict=True)])


def peak_memory(call: Callable[[], Any], device: str) -> int:
    """Bytes that a call holds at its peak beyond what was held before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - resting
    resting = _rest()
    call()
    return _status("VmHWM") - resting


def _rest() -> int:
    """Give free memory back to the system, forget the peak, and return the resident bytes. Linux with glibc only.

    From here on every tensor but the smallest has pages of its own, given back when it is freed: what is measured is
    tensors, not holes between them.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory on a CPU needs Linux")


PARTS = (
    "collation",
    "masks",
    "backbone forward",
    "head and loss forward",
    "head and loss backward",
    "backbone backward",
    "optimizer",
)


def breakdown(arm: Arm, budget: float, least: int = 2) -> dict[str, float]:
    """Where an arm's step spends its time: median seconds of each of `PARTS` and of the step.

    Read from hooks at the backbone's ends: the gradient that arrives at its output divides the backward in two.
    """
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(rounds) < least or (time.perf_counter() - start < budget and len(rounds) < 20):
        rounds.append(_one_breakdown(arm))
    return {part: statistics.median(found[part] for found in rounds) for part in rounds[0]}


def _one_breakdown(arm: Arm) -> dict[str, float]:
    marks: list[float] = []

    def mark(*_: Any) -> None:
        synchronize()
        marks.append(time.perf_counter())

    def after_backbone(_module: nn.Module, _inputs: Any, output: Any) -> None:
        mark()
        output[0].register_hook(mark)

    backbone = arm.model.base_model
    hooks = [backbone.register_forward_pre_hook(mark), backbone.register_forward_hook(after_backbone)]
    try:
        mark()
        arm.optimizer.zero_grad(set_to_none=True)
        batch = arm.collate()
        mark()
        loss = arm.loss(batch)
        mark()
        loss.backward()
        mark()
        arm.optimizer.step()
        mark()
    finally:
        for hook in hooks:
            hook.remove()
    spans = [after - before for before, after in itertools.pairwise(marks)]
    if len(spans) != len(PARTS):
        raise RuntimeError(f"{arm.name} does not call its backbone just once in a step, as a breakdown wants")
    return dict(zip(PARTS, spans, strict=True)) | {"step": marks[-1] - marks[0]}
