"""What happens between fetching examples and computing the loss: rollouts, noise, replay, trees."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import Example
from ..errors import InputError
from ..mdp import ActionSpace, Trajectory, departures
from ..models import layout_of
from ..noise import ModelNoise, NoiseSource, NoNoise, RolloutNoise, TaskNoise, UniformNoise, demonstrate
from ..rollouts import ReplayBuffer, RolloutEngine, uninterrupted
from ..tasks import Task
from ..tree import TreeBatch, collate_trajectories
from .background import Background
from .config import SequenceMatchConfig
from .metrics import rollout_metrics
from .speed import Speed


class BatchMaker:
    """Turns an optimizer step's examples into state trees, with its own random numbers and replay buffer.

    Policy trajectories come in a fixed proportion to the expert's in each micro-batch, so that one count reduces both
    sides of the objective.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        space: ActionSpace,
        args: SequenceMatchConfig,
        engine: RolloutEngine,
        task: Task | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        if not space.deletions and (noise is not None or args.noise_source != "none"):
            raise InputError(
                "the model has no deletion action to take mistakes back with; set deletions, or noise_source: none"
            )
        if space.deletions:
            space.plan_deletion(1, 0)  # one wrong token must be possible to take back
        seed = np.random.SeedSequence([args.seed, args.process_index])
        self.model = model
        self.space = space
        self.args = args
        self.speed = Speed()
        self.engine = engine
        self.rng = np.random.default_rng(seed)
        self.buffer = ReplayBuffer(args.replay_buffer_size, args.max_staleness, seed=args.seed + args.process_index)
        self.background = Background()
        self._updated = False
        self.sampling = args.sampling()
        self.noise = noise or self._named_noise(model, tokenizer, task)
        # Somebody's own source may run anything.
        self.runs_noise_model = noise is not None or args.noise_source in ("model", "rollout")

    def _named_noise(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task | None
    ) -> NoiseSource:
        args = self.args
        match args.noise_source:
            case "uniform":
                # Rows of the embedding beyond the tokenizer's have no text, and nobody would err with them.
                known = replace(self.space, vocab_size=min(len(tokenizer), self.space.vocab_size))
                return UniformNoise(known, args.noise_rate, args.noise_max_run)
            case "model":
                return ModelNoise(model, self.space, args.noise_rate, args.noise_max_run)
            case "rollout":
                return RolloutNoise(self.engine, self.sampling, args.noise_rate)
            case "task":
                if task is None:
                    raise InputError(
                        "noise_source 'task' needs a task; name one, or use uniform, model or rollout noise"
                    )
                return TaskNoise(task, tokenizer, args.noise_rate)
            case _:
                return NoNoise()

    def runs_model(self, step: int) -> bool:
        """Whether making the batches of optimizer step `step` runs the policy, at least on some rank."""
        return self.runs_noise_model or self._wants_policy(step)

    def _wants_policy(self, step: int) -> bool:
        return self.args.uses_rollouts_in_objective and self.args.bc_weight(step) < 1

    def make(self, micro_batches: Sequence[Sequence[Example]], step: int) -> tuple[list[TreeBatch], dict[str, float]]:
        """The trees of each micro-batch of optimizer step `step`, and what to log about noise and rollouts."""
        metrics: dict[str, float] = {}
        wants_policy = self._wants_policy(step)
        if self.args.noise_source == "rollout" and (step % max(self.args.rollout_steps, 1) == 0 or not self._updated):
            self.engine.update(step)
            self._updated = True
        self.buffer.evict(step)
        if wants_policy and (step % self.args.rollout_steps == 0 or len(self.buffer) == 0):
            metrics |= self._refresh([example for batch in micro_batches for example in batch], step)
        if wants_policy:
            metrics |= {"buffer/size": len(self.buffer), "buffer/staleness": self.buffer.staleness(step)}
        batches = []
        for examples in micro_batches:
            expert = self.demonstrations(examples)
            count = math.ceil(self.args.policy_batch_share * len(expert)) if wants_policy else 0
            policy = self.buffer.sample(count) if count else []
            batches.append(self.collate([*expert, *policy]))
        return batches, metrics

    def clean(self, examples: Sequence[Example]) -> TreeBatch:
        """The trees of the expert's completions without noise."""
        return self.collate([demonstrate(example, [], self.space) for example in examples])

    def collate(self, trajectories: Sequence[Trajectory]) -> TreeBatch:
        """Trajectories as state trees, laid out for the model."""
        return collate_trajectories(trajectories, self.space, layout_of(self.model))

    def demonstrations(self, examples: Sequence[Example]) -> list[Trajectory]:
        """The expert's trajectories, mistakes and their deletions included."""
        mistakes = self.noise.mistakes(examples, self.rng)
        return [
            demonstrate(example, found, self.space, self.args.noise_action_weight)
            for example, found in zip(examples, mistakes, strict=True)
        ]

    def _refresh(self, examples: Sequence[Example], step: int) -> dict[str, float]:
        """Roll the policy out from the step's prompts into the buffer."""
        with self.speed.measure("rollout"):
            if not self.args.async_rollouts:
                self.engine.update(step)
                found: Sequence[Trajectory] = self._roll_out(examples, step)()
            else:
                arrived = self.background.take()
                self.engine.update(step)
                # The first time there is nothing to arrive, and the policy's half cannot be empty.
                found = self._roll_out(examples, step)() if arrived is None else arrived
                self.background.ask(self._roll_out(examples, step))
        self.speed.count(rollout_actions=sum(map(len, found)))
        self.buffer.extend(found)
        return rollout_metrics(found, self.space)

    def _roll_out(self, examples: Sequence[Example], step: int) -> Callable[[], list[Trajectory]]:
        """Rolls the policy out from some prompts, with the departures from their completions where they matter."""
        prompts = [example.prompt_ids for example in examples for _ in range(self.args.num_generations)]
        expected = [example.completion_ids for example in examples for _ in range(self.args.num_generations)]
        config = replace(self.sampling, seed=int(self.rng.integers(2**31)))

        def run() -> list[Trajectory]:
            rollouts = uninterrupted(self.engine.rollout(prompts, config, policy_version=step))
            sampled = [rollout.trajectory for rollout in rollouts]
            if not self.args.off_expert_weight:
                return sampled
            return [
                replace(trajectory, action_weights=departures(trajectory, completion_ids, self.space))
                for trajectory, completion_ids in zip(sampled, expected, strict=True)
            ]

        return run

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs: random numbers and buffer."""
        return {
            "rng": json.dumps(self.rng.bit_generator.state),
            "buffer": self.buffer.state_dict(),
            "background": self.background.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.buffer.load_state_dict(state["buffer"])
        self.background.load_state_dict(state.get("background"))
