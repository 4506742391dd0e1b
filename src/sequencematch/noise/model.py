"""Noise from the policy itself: its own likely mistakes, at the very states where it would make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..data import Example
from ..mdp import ActionSpace, Trajectory
from ..models import evaluation_mode, layout_of, node_logits
from ..tree import TreeBatch, collate_trajectories
from .demonstrate import Mistake, demonstrate
from .sources import draw_runs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Run:
    """A mistake in the making."""

    example: int
    position: int
    length: int
    tokens: list[int]


@dataclass(frozen=True)
class ModelNoise:
    """Wrong tokens that the policy samples at the expert's states, given that it does not do what the expert does.

    One forward pass over the expert's states for each token of the longest run.
    """

    model: PreTrainedModel
    """The policy."""
    space: ActionSpace
    """Its action space; `<eos>` and deletions are never drawn."""
    rate: float
    """Probability of a mistake at each expert step."""
    max_run: int = 1
    """Longest run of wrong tokens."""

    def mistakes(self, examples: Sequence[Example], rng: np.random.Generator) -> list[list[Mistake]]:
        """Runs of the policy's own samples; the first of a run is never the token that the expert has there."""
        runs = [
            _Run(index, position, length, [])
            for index, example in enumerate(examples)
            for position, length in draw_runs(len(example.completion_ids), self.rate, self.max_run, rng)
        ]
        for step in range(max((run.length for run in runs), default=0)):
            ongoing = [run for run in runs if run.length > step]
            batch, nodes = (
                self._expert_states(ongoing, examples) if step == 0 else self._wrong_states(ongoing, examples)
            )
            self._append(ongoing, examples, self._logits(batch, nodes), rng)
        found: list[list[Mistake]] = [[] for _ in examples]
        for run in runs:
            found[run.example].append(Mistake(run.position, tuple(run.tokens)))
        return found

    def _expert_states(self, runs: list[_Run], examples: Sequence[Example]) -> tuple[TreeBatch, Tensor]:
        """The tree of the expert's completions, and the node where each run begins."""
        clean = [demonstrate(example, [], self.space) for example in examples]
        batch = collate_trajectories(clean, self.space, layout_of(self.model))
        start = (batch.length.cumsum(0) - batch.length).tolist()
        return batch, batch.state[[start[run.example] + run.position for run in runs]]

    def _wrong_states(self, runs: list[_Run], examples: Sequence[Example]) -> tuple[TreeBatch, Tensor]:
        """For each example a tree of its wrong tokens so far, and the node where each run ends."""
        branches = []
        for run in runs:
            example = examples[run.example]
            string = np.array([*example.completion_ids[: run.position], *run.tokens])
            branches.append(Trajectory(np.array(example.prompt_ids), string, terminated=False))
        # The branches share almost all of the example, so one tree for each pays whatever the attention.
        batch = collate_trajectories(branches, self.space, layout_of(self.model), [run.example for run in runs])
        return batch, batch.final

    def _logits(self, batch: TreeBatch, nodes: Tensor) -> Tensor:
        """The policy's logits of ordinary tokens at `nodes`: float64 [runs, V]."""
        device = self.model.device
        with evaluation_mode(self.model), torch.no_grad():
            logits = node_logits(self.model, batch.to(device), nodes.to(device)).double()
        logits[:, [self.space.eos_token_id, *self.space.by_token]] = -torch.inf
        return logits

    def _append(self, runs: list[_Run], examples: Sequence[Example], logits: Tensor, rng: np.random.Generator) -> None:
        """Sample one more token for every run; the first of a run is not what the expert has there."""
        first = [row for row, run in enumerate(runs) if not run.tokens]
        logits[first, [examples[runs[row].example].completion_ids[runs[row].position] for row in first]] = -torch.inf
        for run, cumulative in zip(runs, logits.softmax(-1).cumsum(-1).cpu().numpy(), strict=True):
            draw = rng.random() * cumulative[-1]
            run.tokens.append(int(np.searchsorted(cumulative, draw, side="right")))
