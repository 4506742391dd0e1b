"""The arms of the benchmarks: each way to compute a step's loss, with a model and an optimizer of the same kind.

Arms that leave the model as transformers made it share one copy; TRL and the library, which install a head or an
attention of their own, have copies with equal weights.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import refeed
import torch
from measure import Arm
from torch import Tensor, nn
from workload import Size, actions_of

from sequencematch.mdp import ActionSpace, Trajectory
from sequencematch.models import evaluate_states, layout_of, prepare_model
from sequencematch.objectives import Steps, bc_loss, get_divergence, sequencematch_loss
from sequencematch.rollouts import ReplayBuffer
from sequencematch.tasks import build_tokenizer
from sequencematch.tree import TreeBatch, collate_trajectories

ALPHA, GAMMA = 0.01, 0.998
Objective = Callable[[Steps, "Steps | None"], Tensor]


def behavioural_cloning(expert: Steps, _policy: Steps | None = None) -> Tensor:
    """The loss of the arms `mle` and `bc`."""
    return bc_loss(expert)[0]


def sequencematch(expert: Steps, policy: Steps | None = None, *, divergence: str = "lecam") -> Tensor:
    """The SequenceMatch loss."""
    options = {"divergence": get_divergence(divergence), "alpha": ALPHA, "gamma": GAMMA}
    return sequencematch_loss(expert, policy, **options)[0]


chi2_mixture: Objective = partial(sequencematch, divergence="chi2_mixture")


class Bench:
    """Models with equal weights, and the arms that train them."""

    def __init__(self, size: Size, device: str, attention: str = "auto") -> None:
        self.size, self.device = size, device
        self.stock = size.model(device)
        self.ours = copy.deepcopy(self.stock)
        prepare_model(self.ours, attention=attention)
        self._optimizers: dict[int, torch.optim.Optimizer] = {}
        self._trainer: Any = None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The model's AdamW, fused."""
        if id(model) not in self._optimizers:
            self._optimizers[id(model)] = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        return self._optimizers[id(model)]

    def arm(
        self, name: str, model: nn.Module, collate: Callable[[], Any], loss: Callable[[Any], Tensor], work: int
    ) -> Arm:
        """An arm with the model's own optimizer."""
        return Arm(name, model, self.optimizer(model), collate, loss, work)

    def hf(self, documents: Sequence[np.ndarray], name: str = "hf") -> Arm:
        """Transformers' own causal language modelling loss, documents padded to the longest."""

        def loss(batch: dict[str, Tensor]) -> Tensor:
            return self.stock(**batch, use_cache=False).loss

        collate = partial(pad_documents, documents, self.device)
        return self.arm(name, self.stock, collate, loss, predicted(documents))

    def trl(self, documents: Sequence[np.ndarray], name: str = "trl") -> Arm:
        """The loss path of TRL's SFTTrainer, its fused head and its metrics included."""
        trainer = self.trainer

        def collate() -> dict[str, Tensor]:
            batch = pad_documents(documents, self.device)
            return {"attention_mask": torch.ones_like(batch["input_ids"])} | batch

        def loss(batch: dict[str, Tensor]) -> Tensor:
            return trainer.compute_loss(trainer.model, batch)

        return self.arm(name, trainer.model, collate, loss, predicted(documents))

    @property
    def trainer(self) -> Any:
        """An SFTTrainer on a copy of the model, whose forward it patches."""
        if self._trainer is None:
            with tempfile.TemporaryDirectory() as folder:  # it saves nothing
                self._trainer = sft_trainer(copy.deepcopy(self.stock), self.device, folder)
        return self._trainer

    def tree(
        self,
        name: str,
        expert: Sequence[Trajectory],
        objective: Objective = sequencematch,
        *,
        space: ActionSpace | None = None,
        buffer: ReplayBuffer | None = None,
        work: int | None = None,
    ) -> Arm:
        """Ours: the state tree of the demonstrations, and of as many rollouts from `buffer` if there is one."""
        chosen = space or self.size.space
        layout = layout_of(self.ours)

        def collate() -> TreeBatch:
            policy = buffer.sample(len(expert)) if buffer else []
            return collate_trajectories([*expert, *policy], chosen, layout).to(self.device)

        def loss(batch: TreeBatch) -> Tensor:
            steps = evaluate_states(self.ours, batch, chosen)
            if not buffer:
                return objective(steps, None)
            return objective(steps.subset(~batch.is_policy), steps.subset(batch.is_policy))

        return self.arm(name, self.ours, collate, loss, work or actions_of(expert))

    def refeed(self, name: str, expert: Sequence[Trajectory], *, our_head: bool = False) -> Arm:
        """The paper's scheme. Its rows and masks are ready: only the model's part of the step is timed."""
        space = self.size.space
        ready = refeed.collate(expert, space).to(self.device)
        evaluate = refeed.evaluate_with_our_head if our_head else refeed.evaluate

        def loss(batch: refeed.RefeedBatch) -> Tensor:
            return sequencematch(evaluate(self.stock, batch, space))

        return self.arm(name, self.stock, lambda: ready, loss, actions_of(expert))


def predicted(documents: Sequence[np.ndarray]) -> int:
    """Tokens that are predicted: all but the first of each document. They are the actions of our arms."""
    return sum(len(tokens) - 1 for tokens in documents)


def pad_documents(documents: Sequence[np.ndarray], device: str) -> dict[str, Tensor]:
    """Input ids and labels, right-padded to the longest document; a mask only where there is padding."""
    width = max(len(tokens) for tokens in documents)
    ids, labels = np.zeros((len(documents), width), np.int64), np.full((len(documents), width), -100)
    for row, tokens in enumerate(documents):
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if (labels < 0).any():
        batch["attention_mask"] = (batch["labels"] >= 0).long()
    return {name: tensor.to(device) for name, tensor in batch.items()}


def sft_trainer(model: nn.Module, device: str, folder: str) -> Any:
    """A TRL SFTTrainer around the model as it is: no mixed precision, no checkpointing, no reports."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    forward = model.forward
    disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL switches checkpointing on by a name that is going out
        args = SFTConfig(
            output_dir=folder,
            report_to="none",
            use_cpu=device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            packing=False,
            disable_tqdm=True,
        )
    data = Dataset.from_dict({"input_ids": [[4, 5, 6, 7, 1]]})
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=build_tokenizer("abcdefgh"))
    if model.forward == forward:
        raise RuntimeError("this version of TRL does not patch the model's forward with its fused head")
    return trainer
