"""The trainer: wiring between data, noise, rollouts, trees, the objective and transformers' Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput

from ..data import Example
from ..errors import InputError
from ..models import check_fits, evaluate_states, save_adapters, whole_weights
from ..models.candidates import evaluate_candidates
from ..models.departures import evaluate_departures
from ..noise import NoiseSource
from ..objectives import (
    Steps,
    bc_loss,
    get_divergence,
    iql_offline_loss,
    off_expert_loss,
    sequencematch_loss,
    unlikelihood_loss,
)
from ..rollouts import RolloutEngine
from ..tasks import Task
from ..tree import TreeBatch
from .batches import BatchMaker
from .card import write_card
from .completions import report_policy_completions
from .config import SequenceMatchConfig
from .engines import make_engine
from .inputs import make_examples, make_policy
from .metrics import Means, detection, value_metrics
from .resumable import ResumableTrainer

VALUE_LIMIT = 1e4
"""A soft value beyond this has lost the digits that rewards are made of: training has diverged."""


def collate_examples(rows: Sequence[dict]) -> dict[str, list[Example]]:
    """Keep a batch as a list of examples; trees are built once the noise is in."""
    return {"examples": [Example.from_row(row) for row in rows]}


class SequenceMatchTrainer(ResumableTrainer):
    """Train a causal language model by SequenceMatch (arXiv 2306.05426, algorithm 1) or one of its baselines.

    The loss of an optimizer step is a sum over all its actions, divided by one count for the whole global batch (the
    sum of the expert's action weights), so gradient accumulation and data parallelism do not change the result.

    Args:
        model: a causal language model, or the id or folder to load one from. Deletion actions are added to it and to
            its tokenizer in place, as `args.deletions` says.
        args: the options; those of transformers' TrainingArguments if not given.
        data_collator: replaces `collate_examples`.
        train_dataset: rows with `text`, with `prompt` and `completion` (strings or messages), or with `messages`; may
            be streamed.
        eval_dataset: the same, or several by name; evaluated without noise, as negative log-likelihood per action.
        processing_class: the tokenizer; loaded from the model's folder if not given.
        compute_metrics, callbacks, optimizers: as in `transformers.Trainer`.
        peft_config: wraps the model in adapters; the rows of the deletion tokens train with them.
        quantization_config: quantises a model that is given as id or folder.
        task: the task whose own mistakes `noise_source: task` makes.
        noise: a noise source of your own, in place of what `noise_source` names.
        rollout_engine: samples the policy's trajectories, in place of what `use_vllm` says.

    Raises:
        InputError: unsupported model, contradicting options, bad data (see `tokenize_dataset`); while training, a loss
            or value that is not finite or explodes, and a checkpoint that cannot be written.
    """

    # The count in `get_batch_samples` covers all accumulated micro-batches.
    loss_is_scaled_for_ga = True
    args: SequenceMatchConfig
    model: Any

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: SequenceMatchConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        peft_config: Any | None = None,
        *,
        quantization_config: Any | None = None,
        task: Task | None = None,
        noise: NoiseSource | None = None,
        rollout_engine: RolloutEngine | None = None,
    ) -> None:
        args = args or SequenceMatchConfig()
        policy, tokenizer, self.space = make_policy(model, processing_class, args, peft_config, quantization_config)
        # All of this before transformers makes the output folder: bad input leaves nothing behind.
        if train_dataset is not None:
            train_dataset = make_examples(train_dataset, policy, tokenizer, self.space, args)
        if eval_dataset is not None:
            eval_dataset = make_examples(eval_dataset, policy, tokenizer, self.space, args)
        engine = rollout_engine or make_engine(policy, tokenizer, self.space, args)
        self.batches = BatchMaker(policy, tokenizer, self.space, args, engine, task, noise)
        _check_lengths(train_dataset, policy, args)
        super().__init__(
            model=policy,
            args=args,
            data_collator=data_collator or collate_examples,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,  # type: ignore[arg-type]
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Before `loss_is_scaled_for_ga` existed, this flag said that the loss needs no division by the accumulation.
        self.model_accepts_loss_kwargs = True
        self.divergence = get_divergence(args.divergence)
        self._means = Means()
        self._largest_value = torch.zeros(())
        self._prompts: list[tuple[int, ...]] = []
        self._evaluated: list[list[float]] = []

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers, but FSDP2's mixed precision leaves soft values as they are, in float32."""
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """An optimizer step's micro-batches as trees, and how many actions all ranks imitate in it."""
        with self.batches.speed.measure("data"):
            fetched, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            if not fetched:  # a stream has come to its end, and is read again
                self.control.should_epoch_stop = True
                return [], None
            micro_batches = [inputs["examples"] for inputs in fetched]
            self._prompts = [example.prompt_ids for examples in micro_batches for example in examples]
            step = self.state.global_step
            with self._policy_at_hand() if self.batches.runs_model(step) else nullcontext():
                trees, metrics = self.batches.make(micro_batches, step)
        self._means.record(metrics)
        count = torch.as_tensor(sum(_imitated_actions(batch) for batch in trees), device=device)
        total = self.accelerator.gather(count).sum()
        return [{"input_ids": batch.token, "batch": batch} for batch in trees], total

    def _policy_at_hand(self) -> AbstractContextManager:
        """Inside, each rank runs the policy as often as it needs to, whatever the others do."""
        kwargs: Any = self.args.gradient_checkpointing_kwargs
        return whole_weights(self.model_wrapped, self.accelerator, kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch, with its speed recorded."""
        speed, batch = self.batches.speed, inputs["batch"]
        speed.count(nodes=batch.nodes, actions=len(batch.action))
        with speed.measure("forward_backward"):
            loss = super().training_step(model, inputs, *args, **kwargs)
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()  # the loop reads the loss next, and waits anyway
        self._check_health(loss)
        return loss

    def _check_health(self, loss: Tensor) -> None:
        """Raise InputError on every rank, before the weights are touched, if one of them has diverged."""
        signs = torch.stack([loss.detach().float(), self._largest_value.to(loss.device).float()])
        losses, values = self.accelerator.gather(signs[None]).t().tolist()
        if all(map(math.isfinite, losses)) and all(value < VALUE_LIMIT for value in values):
            return
        raise InputError(
            f"training diverged at step {self.state.global_step + 1}: the loss is {losses[0]:.4g} and the largest |V| "
            f"{max(values):.4g} (the limit is {VALUE_LIMIT:g}); lower learning_rate or max_grad_norm, warm up longer "
            "(warmup_steps, bc_warmup_steps), and resume from the last checkpoint"
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one micro-batch of trees, divided by the step's count of expert actions."""
        batch: TreeBatch = inputs["batch"].to(self.args.device)
        steps, *more = self._states_and_more(model, batch)
        expert = steps.subset(~batch.is_policy)
        policy = steps.subset(batch.is_policy) if bool(batch.is_policy.any()) else None
        # Data parallelism averages gradients over ranks; the count is over all of them.
        count = _imitated_actions(batch) if num_items_in_batch is None else num_items_in_batch
        loss, components = self._objective(expert, policy, more, count / self.accelerator.num_processes)
        self._means.record({f"objective/{name}": value for name, value in components.items()})
        self._means.record(value_metrics(steps) | detection(batch, steps, self.space))
        self._largest_value = steps.v.detach().abs().max()
        return (loss, {"q": steps.q, "v": steps.v}) if return_outputs else loss

    def states(self, model: nn.Module, batch: TreeBatch) -> Steps:
        """The soft values along a batch's trajectories, as the objective takes them; see `evaluate_states`."""
        return evaluate_states(model, batch.to(self.args.device), self.space, self.args.terminal_value)

    def _states_and_more(self, model: nn.Module, batch: TreeBatch) -> tuple[Any, ...]:
        """The steps of the batch, and what else the objective takes from the same forward pass."""
        args = self.args
        if args.objective == "unlikelihood":
            return evaluate_candidates(model, batch, self.space, args.terminal_value)
        if args.off_expert_weight and bool(batch.is_policy.any()):
            steps, deletions, astray = evaluate_departures(model, batch, self.space, args.terminal_value)
            return steps, deletions, astray[batch.is_policy]
        return (self.states(model, batch),)

    def _objective(
        self, expert: Steps, policy: Steps | None, more: Sequence[Any], denominator: Any
    ) -> tuple[Tensor, dict]:
        args = self.args
        if args.objective == "unlikelihood":
            return unlikelihood_loss(expert, *more, weight=args.unlikelihood_weight, denominator=denominator)
        if args.objective == "iql_offline":
            return iql_offline_loss(expert, lam=args.iql_lambda, gamma=args.gamma, denominator=denominator)
        bc, components = bc_loss(expert, denominator=denominator)
        bc_weight = args.bc_weight(self.state.global_step)
        if bc_weight == 1.0:
            return bc, components
        matching, parts = sequencematch_loss(
            expert,
            policy,
            divergence=self.divergence,
            alpha=args.alpha,
            gamma=args.gamma,
            value_estimator=args.value_estimator,  # type: ignore[arg-type]
            denominator=denominator,
        )
        if policy is not None and args.off_expert_weight:
            off_expert, of_departures = off_expert_loss(
                policy,
                *more,
                divergence=self.divergence,
                alpha=args.alpha,
                gamma=args.gamma,
                counterfactual_weight=args.counterfactual_weight,
                scale=len(expert.length) / denominator,
            )
            matching, parts = matching + args.off_expert_weight * off_expert, parts | of_departures
        return bc_weight * bc + (1 - bc_weight) * matching, {**components, **parts, "bc_weight": bc_weight}

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Negative log-likelihood per action of the expert's own completions, without noise."""
        batch = self.batches.clean(inputs["examples"]).to(self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            steps = self.states(model, batch)
        found = torch.stack([(steps.v - steps.q) * steps.weight, steps.weight.to(steps.q.dtype)], 1)
        sums = found.new_zeros(len(batch.length), 2).index_add_(0, steps.trajectory, found)
        # Without the rows that pad the last batch of several processes, which count already.
        self._evaluated += self.accelerator.gather_for_metrics(sums).tolist()
        return sums[:, 0].sum() / sums[:, 1].sum(), None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in transformers, but the loss is a mean over all actions and not over batches, which differ in size."""
        self._evaluated = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        sums, counts = zip(*self._evaluated, strict=True)
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = sum(sums) / sum(counts)
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        inner = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not hasattr(inner, "get_base_model"):
            return super()._save(output_dir, state_dict)
        folder = output_dir or str(self.args.output_dir)
        if self.args.should_save:
            save_adapters(inner, folder, state_dict=state_dict)
            assert self.processing_class is not None
            self.processing_class.save_pretrained(folder)  # it says what the adapters' tokens delete
            torch.save(self.args, Path(folder) / TRAINING_ARGS_NAME)
        return None

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, **kwargs: Any
    ) -> None:
        """Write the model card, as `push_to_hub` does too: method, options, versions, results and citation.

        Args:
            model_name: its title; the output folder's name if not given.
            dataset_name: hub id of the training data.
            kwargs: what else transformers' own card takes, without effect.
        """
        if self.is_world_process_zero():
            write_card(self, model_name, dataset_name)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means over all ranks of what was recorded since the last training log, beside transformers' own."""
        if "loss" in logs:
            if self.args.log_completions:
                with self._policy_at_hand():
                    metrics = report_policy_completions(self, self._prompts)
                if not self.args.uses_rollouts_in_objective:
                    self._means.record(metrics)
            logs.update(Means.of(gather_object([self._means.take()])))
            logs.update(self.batches.speed.report())
            if self.args.max_grad_norm and "grad_norm" in logs:
                logs["objective/clipped"] = float(logs["grad_norm"] > self.args.max_grad_norm)
        super().log(logs, start_time)


def _imitated_actions(batch: TreeBatch) -> Tensor:
    """How many expert actions a batch imitates: the sum of their weights."""
    return batch.weight[~batch.is_policy[batch.trajectory]].sum()


def _check_lengths(train_dataset: Any, model: Any, args: SequenceMatchConfig) -> None:
    """Raise InputError if rollouts from the data's prompts could outgrow the model, or a stream has no end."""
    if isinstance(train_dataset, IterableDataset):
        if args.max_steps <= 0:
            raise InputError("a streamed data set has no known length; set max_steps")
    elif args.samples_rollouts and train_dataset is not None:
        check_fits(model, max(len(ids) for ids in train_dataset["prompt_ids"]), args.max_completion_length)
