"""A Trainer whose checkpoints are written at once and resumed exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from . import unsharded
from .atomic import UNFINISHED, check_writable, explain_write_failure, publish, remove_unfinished
from .batches import BatchMaker
from .checkpoints import (
    check_checkpoint,
    explain_load_failure,
    fresh_seeds,
    load_rank_state,
    newest_checkpoint,
    save_rank_state,
    write_record,
)
from .continuity import check_same_run, curve_options, data_fingerprint
from .metrics import Means


class ResumableTrainer(Trainer):
    """Killed at any time and resumed, it goes on as if it had not been: the same losses, the same weights.

    Beside what transformers saves, a checkpoint holds the random numbers and rollouts of each process and what has not
    been logged yet. It is written under another name and then renamed, so it is there whole or not at all; old ones go
    once the new one is there.

    Subclasses set `batches` and `_means`, whose state goes into checkpoints.

    Raises:
        InputError: `output_dir` cannot be written to; while training, a checkpoint cannot be written.
    """

    batches: BatchMaker
    _means: Means

    def __init__(self, model: Any = None, args: Any = None, **kwargs: Any) -> None:
        if args is not None and args.should_save:
            check_writable(args.output_dir)
        self._staging: Path | None = None
        self._unlogged: dict[str, Any] | None = None
        super().__init__(model, args, **kwargs)
        self.add_callback(_GoOnLogging(self))

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train, as `transformers.Trainer.train` does.

        Args:
            resume_from_checkpoint: the folder of a checkpoint; or True (or "true"), the newest complete one in
                `output_dir`.
            kwargs: as in transformers.

        Raises InputError, before anything runs, for a checkpoint that is corrupt, or of a run with other options or
        data.
        """
        if isinstance(resume_from_checkpoint, str) and resume_from_checkpoint.lower() in ("true", "false"):
            resume_from_checkpoint = resume_from_checkpoint.lower() == "true"
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_checkpoint(str(self.args.output_dir))
        if resume_from_checkpoint:
            record = check_checkpoint(resume_from_checkpoint)
            check_same_run(resume_from_checkpoint, record, self._options(), data_fingerprint(self.train_dataset))
        if self.args.should_save:
            remove_unfinished(str(self.args.output_dir))
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _options(self) -> dict[str, Any]:
        return curve_options(self.args, self.get_total_train_batch_size(self.args))

    # ---- Writing ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; raises InputError if the model cannot be written."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        with explain_write_failure("the model", output_dir or str(self.args.output_dir)):
            super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints go: one in the making into a folder of its own."""
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        staging = run_dir / f"{UNFINISHED}{self.state.global_step}"
        final = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with explain_write_failure(f"the checkpoint of step {self.state.global_step}", run_dir):
            try:
                self._staging = staging
                super()._save_checkpoint(model, trial)
                self._finish_checkpoint(staging / final.name, final)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            finally:
                self._staging = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _finish_checkpoint(self, staged: Path, final: Path) -> None:
        """Once all processes have written their part: complete the checkpoint, rename it, and let old ones go."""
        best = final.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if self.state.best_global_step and (best == final or best.exists()):
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            record = {
                "options": self._options(),
                "data": data_fingerprint(self.train_dataset),
                "processes": self.args.world_size,
                "only_model": self.args.save_only_model,
            }
            write_record(staged, record)
            publish(staged, final)
            rotate_checkpoints(
                str(final.parent), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else the folder is renamed while it is read
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {
            "batches": self.batches.state_dict(),
            "unlogged": {
                "loss": self._tr_loss.cpu(),
                "since": self._globalstep_last_logged,
                "means": self._means.state_dict(),
            },
        }
        save_rank_state(state, output_dir, self.args.process_index)

    # ---- Reading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with explain_load_failure(resume_from_checkpoint):
            if self._unshards(resume_from_checkpoint):
                unsharded.load_weights(self.model, resume_from_checkpoint)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _unshards(self, checkpoint: str) -> bool:
        """Whether FSDP2 has written a checkpoint that this run, which transformers would refuse, reads without it."""
        return not self.is_fsdp_enabled and unsharded.is_from_fsdp(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with explain_load_failure(checkpoint):
            if self._unshards(checkpoint):
                unsharded.load_optimizer(self.model, self.optimizer, checkpoint)
                scheduler: Any = self.lr_scheduler
                scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
            args = self.args
            state = load_rank_state(checkpoint, args.process_index, args.world_size, args.seed, self.state.global_step)
            self.batches.load_state_dict(state["batches"])
            self._unlogged = state.get("unlogged")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        args = self.args
        if checkpoint is None or check_checkpoint(checkpoint)["processes"] == args.world_size:
            super()._load_rng_state(checkpoint)
        else:
            seeds = fresh_seeds(args.seed, args.process_index, self.state.global_step)
            set_seed(int(seeds.generate_state(1)[0]))

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """How many epochs a run has behind it, and how many batches of the present one."""
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        streamed = isinstance(self.train_dataset, IterableDataset)
        if resume_from_checkpoint is None or self.args.ignore_data_skip or not streamed:
            return position
        with explain_load_failure(resume_from_checkpoint):
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        epochs, steps = _place_in_stream(state)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _go_on_logging(self) -> None:
        """Take over what the run before had not logged yet."""
        unlogged, self._unlogged = self._unlogged, None
        if unlogged is None:
            return
        self._tr_loss += unlogged["loss"].to(self._tr_loss.device)
        self._globalstep_last_logged = unlogged["since"]
        self._means.load_state_dict(unlogged["means"])
        # The mean loss of the whole run is over the steps of this run alone.
        self._total_loss_scalar -= self.accelerator.gather(self._tr_loss).mean().item()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but what training draws next does not depend on whether it was evaluated before."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluation_loop(*args, **kwargs)


class _GoOnLogging(TrainerCallback):
    """Calls back once the loop has set up its sums, which is after the checkpoint is loaded."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._go_on_logging()


def _place_in_stream(state: TrainerState) -> tuple[int, int]:
    """Passes through a stream and optimizer steps in the present one; transformers takes it for a single long pass.

    A stream's epoch is `max_steps` steps long, for want of a length, and ends earlier.
    """
    epochs, part = divmod(float(state.epoch or 0), 1.0)
    if part == 0 and epochs > 0:  # one pass was long enough for all steps
        return int(epochs) - 1, state.max_steps
    return int(epochs), round(part * state.max_steps)
