"""The trainer: wiring between data, noise, rollouts, trees, the objective and transformers' Trainer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..data import Example, tokenize_dataset
from ..errors import InputError
from ..models import action_space, check_fits, evaluate_states, max_positions, prepare_model
from ..models.loading import load_model, load_tokenizer
from ..noise import NoiseSource
from ..objectives import Steps, bc_loss, get_divergence, iql_offline_loss, sequencematch_loss
from ..rollouts import HFRolloutEngine, RolloutEngine
from ..tasks import Task
from ..tree import TreeBatch
from .batches import BatchMaker
from .checkpoints import check_checkpoint, explain_load_failure, load_extra_state, save_extra_state
from .config import SequenceMatchConfig


def collate_examples(rows: Sequence[dict]) -> dict[str, list[Example]]:
    """Keep a batch as a list of examples; trees are built once the noise is in."""
    return {"examples": [Example.from_row(row) for row in rows]}


class SequenceMatchTrainer(Trainer):
    """Train a causal language model by SequenceMatch (arXiv 2306.05426, algorithm 1) or one of its baselines.

    The loss of an optimizer step is a sum over all its actions, divided by one count for the whole global batch (the
    sum of the expert's action weights), so gradient accumulation and data parallelism do not change the result.

    Args:
        model: a causal language model, or the id or folder to load one from. Deletions need `add_backspace_token`.
        args: the options.
        data_collator: replaces `collate_examples`.
        train_dataset: rows with `text`, or with `prompt` and `completion`.
        eval_dataset: the same; evaluated without noise, as negative log-likelihood per action.
        processing_class: the tokenizer; loaded from the model's folder if not given.
        compute_metrics, callbacks, optimizers: as in `transformers.Trainer`.
        peft_config: wraps the model in adapters.
        task: the task whose own mistakes `noise_source: task` makes.
        noise: a noise source of your own, in place of what `noise_source` names.
        rollout_engine: samples the policy's trajectories; `HFRolloutEngine` if not given.

    Raises:
        InputError: unsupported model, missing deletion action, bad data (see `tokenize_dataset`).
    """

    # The count in `get_batch_samples` covers all accumulated micro-batches.
    loss_is_scaled_for_ga = True
    args: SequenceMatchConfig
    model: Any

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: SequenceMatchConfig,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        peft_config: Any | None = None,
        *,
        task: Task | None = None,
        noise: NoiseSource | None = None,
        rollout_engine: RolloutEngine | None = None,
    ) -> None:
        if isinstance(model, str):
            processing_class = processing_class or load_tokenizer(model)
            model = load_model(model)
        if processing_class is None:
            raise InputError("give the model's tokenizer as processing_class")
        prepare_model(model, args.tree_attention)
        self.space = action_space(model, processing_class)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        # All of this before transformers makes the output folder: bad input leaves nothing behind.
        train_dataset = None if train_dataset is None else self._tokenize(train_dataset, model, processing_class, args)
        eval_dataset = None if eval_dataset is None else self._tokenize(eval_dataset, model, processing_class, args)
        policy: Any = model
        engine = rollout_engine or HFRolloutEngine(policy, self.space, args.generation_batch_size)
        self.batches = BatchMaker(policy, processing_class, self.space, args, engine, task, noise)
        if args.samples_rollouts and train_dataset is not None:
            longest = max(len(ids) for ids in train_dataset["prompt_ids"])
            check_fits(policy, longest, args.max_completion_length)
        super().__init__(
            model=model,  # type: ignore[arg-type]
            args=args,
            data_collator=data_collator or collate_examples,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Before `loss_is_scaled_for_ga` existed, this flag said that the loss needs no division by the accumulation.
        self.model_accepts_loss_kwargs = True
        self.divergence = get_divergence(args.divergence)
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._evaluated: list[tuple[float, float]] = []

    def _tokenize(
        self, dataset: Dataset, model: Any, tokenizer: PreTrainedTokenizerBase, args: SequenceMatchConfig
    ) -> Dataset:
        with args.main_process_first(desc="tokenizing"):
            return tokenize_dataset(
                dataset,
                tokenizer,
                text_field=args.dataset_text_field,
                max_length=min(filter(None, (args.max_length, max_positions(model))), default=None),
                space=self.space,
                truncate_long=args.truncate_long,
                num_proc=args.dataset_num_proc,
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """An optimizer step's micro-batches as trees, and how many actions all ranks imitate in it."""
        with self.batches.speed.measure("data"):
            fetched, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            micro_batches = [inputs["examples"] for inputs in fetched]
            trees, metrics = self.batches.make(micro_batches, self.state.global_step)
        self._record(metrics)
        count = torch.as_tensor(sum(_imitated_actions(batch) for batch in trees), device=device)
        total = self.accelerator.gather(count).sum()
        return [{"input_ids": batch.token, "batch": batch} for batch in trees], total

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch, with its speed recorded."""
        speed, batch = self.batches.speed, inputs["batch"]
        speed.count(nodes=batch.nodes, actions=len(batch.action))
        with speed.measure("forward_backward"):
            loss = super().training_step(model, inputs, *args, **kwargs)
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()  # the loop reads the loss next, and waits anyway
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one micro-batch of trees, divided by the step's count of expert actions."""
        batch: TreeBatch = inputs["batch"].to(self.args.device)
        steps = evaluate_states(model, batch, self.space, self.args.terminal_value)
        expert = steps.subset(~batch.is_policy)
        policy = steps.subset(batch.is_policy) if bool(batch.is_policy.any()) else None
        # Data parallelism averages gradients over ranks; the count is over all of them.
        count = _imitated_actions(batch) if num_items_in_batch is None else num_items_in_batch
        loss, components = self._objective(expert, policy, count / self.accelerator.num_processes)
        self._record({f"objective/{name}": value for name, value in components.items()})
        return (loss, {"q": steps.q, "v": steps.v}) if return_outputs else loss

    def _objective(self, expert: Steps, policy: Steps | None, denominator: Any) -> tuple[Tensor, dict]:
        args = self.args
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
            steps = evaluate_states(model, batch, self.space, self.args.terminal_value)
            count = _imitated_actions(batch)
            loss, _ = bc_loss(steps, denominator=count)
        self._evaluated.append((float(loss) * float(count), float(count)))
        return loss, None, None

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
        sums, counts = zip(*gather_object(self._evaluated), strict=True)
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = sum(sums) / sum(counts)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means of what was recorded since the last training log, beside transformers' own numbers."""
        if "loss" in logs:
            logs.update({name: sum(values) / len(values) for name, values in self._metrics.items()})
            logs.update(self.batches.speed.report())
            self._metrics.clear()
        super().log(logs, start_time)

    def _record(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            self._metrics[name].append(float(value))

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train, as `transformers.Trainer.train` does; a corrupt checkpoint raises InputError before anything runs."""
        if isinstance(resume_from_checkpoint, str):
            check_checkpoint(resume_from_checkpoint, self.args)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        save_extra_state(self.batches.state_dict(), output_dir, self.args)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explain_load_failure(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                self.batches.load_state_dict(load_extra_state(checkpoint, self.args))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with explain_load_failure(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def _imitated_actions(batch: TreeBatch) -> Tensor:
    """How many expert actions a batch imitates: the sum of their weights."""
    return batch.weight[~batch.is_policy[batch.trajectory]].sum()
