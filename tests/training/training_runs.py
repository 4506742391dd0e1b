"""Very small training runs: a star with two arms, a one-layer model, everything from configs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from sequencematch.data import Example
from sequencematch.models import add_backspace_token
from sequencematch.rollouts import HFRolloutEngine, Rollout
from sequencematch.tasks import build_tokenizer, get_task, split
from sequencematch.training import SequenceMatchConfig, SequenceMatchTrainer

# Trainers collect garbage several times each; not going through every imported module again makes that quick.
gc.freeze()

TASK = get_task("star", degree=2, length=2, nodes=8)
RESET = {"<reset>": "all"}
QUIET = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "max_completion_length": 4,
    "max_actions": 8,
}
ROLLOUTS = {
    "objective": "sequencematch",
    "divergence": "chi2_mixture",
    "alpha": 0.05,
    "noise_source": "uniform",
    "noise_rate": 0.3,
    "rollout_steps": 2,
    "replay_buffer_size": 24,
}
"""The paper's recipe with everything in play: noise, rollouts and the replay buffer."""


def questions(train_size: int = 64, test_size: int = 16):
    """Rows of the star task."""
    return split(TASK, train_size, test_size, seed=0)


def new_model(alphabet: str = TASK.alphabet, deletions: dict | None = None, seed: int = 0, **sizes: Any):
    """An untrained model and its tokenizer, with deletions."""
    tokenizer = build_tokenizer(alphabet)
    defaults = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = GPT2Config(vocab_size=len(tokenizer), **{**special, **defaults, **sizes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    deletions = RESET if deletions is None else deletions
    if deletions:
        add_backspace_token(model, tokenizer, deletions)
    return model, tokenizer


def no_dropout() -> dict[str, float]:
    """Options of `new_model` that leave nothing to chance in its forward pass."""
    return {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def new_trainer(
    folder: Path,
    *,
    train=None,
    test=None,
    model_options: dict | None = None,
    engine: Any = None,
    noise: Any = None,
    callbacks: list | None = None,
    **options: Any,
) -> SequenceMatchTrainer:
    """A trainer on the star task; `engine` is called with the model and its action space."""
    model, tokenizer = new_model(**(model_options or {}))
    data = questions()
    args = SequenceMatchConfig(output_dir=str(folder), **{**QUIET, **options})
    if engine is not None:
        from sequencematch.models import action_space

        engine = engine(model, action_space(model, tokenizer))
    return SequenceMatchTrainer(
        model,
        args,
        train_dataset=data["train"] if train is None else train,
        eval_dataset=data["test"] if test is None else test,
        processing_class=tokenizer,
        callbacks=callbacks,
        task=TASK,
        noise=noise,
        rollout_engine=engine,
    )


def logs(trainer: SequenceMatchTrainer) -> list[dict[str, float]]:
    """What was logged, without the timing of the whole run and of its steps."""
    entries = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return [{name: x for name, x in entry.items() if not name.startswith("speed/")} for entry in entries]


def weights(trainer: SequenceMatchTrainer) -> dict[str, torch.Tensor]:
    """A copy of the model's weights."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two models are the same, bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def example_rows(trainer: SequenceMatchTrainer, count: int) -> list[Example]:
    """The first tokenized training examples."""
    return [Example.from_row(trainer.train_dataset[index]) for index in range(count)]


class SpyEngine:
    """Samples as `HFRolloutEngine` does, and keeps what it was asked for and what it returned."""

    def __init__(self, model, space) -> None:
        self.space = space
        self.engine = HFRolloutEngine(model, space)
        self.calls: list[dict[str, Any]] = []
        self.returned: list[Rollout] = []
        self.updates: list[int] = []

    def update(self, policy_version):
        self.updates.append(policy_version)

    def rollout(self, prompts, config, *, policy_version=0):
        self.calls.append({"prompts": [tuple(p) for p in prompts], "config": config, "version": policy_version})
        rollouts = self.engine.rollout(prompts, config, policy_version=policy_version)
        self.returned += rollouts
        return rollouts
