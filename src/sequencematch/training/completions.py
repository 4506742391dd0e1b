"""Completions of the policy in training, sampled for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers.integrations import TensorBoardCallback

from ..evaluation import transcribe
from ..models import max_positions
from ..reporting import report_completions
from ..rollouts import Rollout, uninterrupted
from .metrics import rollout_metrics

if TYPE_CHECKING:
    from .trainer import SequenceMatchTrainer


def report_policy_completions(trainer: SequenceMatchTrainer, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Sample from a few prompts on the main process, and show every action, on the console and where logs go.

    The weights must be whole (`whole_weights`).

    Returns the metrics of these completions, so that they are logged also where training itself samples nothing.
    """
    args, step = trainer.args, trainer.state.global_step
    chosen = [list(prompt) for prompt in prompts[: args.num_completions_to_print]]
    if not trainer.accelerator.is_main_process or not chosen:
        return {}
    positions = max_positions(trainer.model)
    room = args.max_completion_length if positions is None else positions - max(map(len, chosen))
    # A seed of its own: what is shown does not change what is trained.
    config = replace(args.sampling(), max_completion_length=max(1, min(args.max_completion_length, room)), seed=step)
    rollouts = uninterrupted(trainer.batches.engine.rollout(chosen, config))
    samples = [_sample(rollout, trainer) for rollout in rollouts]
    report_completions(samples, step, args.report_to or [], _tensorboard_writer(trainer))
    return rollout_metrics([rollout.trajectory for rollout in rollouts], trainer.space)


def _sample(rollout: Rollout, trainer: SequenceMatchTrainer) -> dict[str, Any]:
    tokenizer: Any = trainer.processing_class
    trajectory = rollout.trajectory
    return {
        "step": trainer.state.global_step,
        "prompt": tokenizer.decode(trajectory.prompt_ids.tolist()),
        "pieces": transcribe(trajectory.actions.tolist(), tokenizer, trainer.space),
        "completion": tokenizer.decode(list(rollout.completion)),
        "finish_reason": rollout.finish_reason,
    }


def _tensorboard_writer(trainer: SequenceMatchTrainer) -> Any:
    callbacks = trainer.callback_handler.callbacks
    return next((found.tb_writer for found in callbacks if isinstance(found, TensorBoardCallback)), None)
