"""Steps of decoding as CUDA graphs: one launch in place of the hundreds that keep a GPU waiting for Python."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UP = 2
"""Runs before a capture, in which libraries allocate what they keep."""


class StepGraphs:
    """One captured step for each number of slots that attention looks at, rounded up to a power of two."""

    def __init__(self, step: Callable[[Tensor, int], Tensor], rows: int, device: torch.device) -> None:
        """Wrap `step(where int64 [2, rows], used) -> logits`, whose shapes depend on `used` alone."""
        self._run = step
        self._where = torch.zeros(2, rows, dtype=torch.long, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None
        self._broken = False

    @staticmethod
    def suit(core: Any, device: torch.device) -> bool:
        """Whether steps of this model can be captured: it lies on one CUDA device, not sharded."""
        return device.type == "cuda" and all(type(p.data) is Tensor and p.device == device for p in core.parameters())

    def step(self, where: Tensor, used: int, capacity: int) -> Tensor:
        """The captured step's logits, float [rows, V]; the next step overwrites them."""
        used = min(1 << (used - 1).bit_length(), capacity)
        if self._broken:
            return self._run(where, used)
        self._where.copy_(where)
        if used not in self._graphs:
            try:
                self._graphs[used] = self._capture(used)
            except RuntimeError as error:
                # Slower, but as right: whatever the model does that cannot be captured, it can do step by step.
                logger.warning("decoding runs without CUDA graphs: %s", error)
                self._broken = True
                return self._run(where, used)
        graph, logits = self._graphs[used]
        graph.replay()
        return logits

    def _capture(self, used: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # Feeding the same tokens several times changes nothing.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run(self._where, used)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._run(self._where, used)
        self._pool = self._pool or graph.pool()
        return graph, logits
