"""Sampling trajectories from the policy: whoever needs completions talks to `RolloutEngine`.

Shapes: R rows (rollouts under way), V actions, N actions of one rollout.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory
from ..models.legality import mask_illegal
from ..models.modes import evaluation_mode
from ..models.support import check_fits, check_supported
from .cache import SlotCache
from .sampling import SamplingConfig, draw_actions, next_action_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FinishReason = Literal["eos", "max_completion_length", "max_actions", "no_legal_action"]
OnAction = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled walk through the token MDP, and how likely the policy found each step."""

    trajectory: Trajectory
    """What was done; its source is `policy`, and it is terminated if and only if it ends in `<eos>`."""
    log_probs: np.ndarray
    """float64 [N]: log pi(a_t|s_t), pi the softmax of the model's raw logits over legal actions. This is the policy's
    own probability at temperature 1, whatever bias, barring, temperature or filter the action was drawn with."""
    completion: tuple[int, ...]
    """The surviving tokens, without `<eos>`."""
    finish_reason: FinishReason
    """`eos`; or why it was cut: it would have appended past the length limit, its actions were used up, or every
    action left had probability zero."""


class RolloutEngine(Protocol):
    """Anything that samples trajectories: the interface between training or evaluation and generation."""

    space: ActionSpace
    """The actions of the policy that it samples."""

    def rollout(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        policy_version: int = 0,
        on_action: OnAction | None = None,
    ) -> list[Rollout]:
        """Sample one completion per prompt.

        Every rollout ends, whatever the model does. The noise of a rollout depends on `config.seed` and the
        prompt's index alone, so other prompts change it by rounding at most.

        Args:
            prompts: token ids, each of at least one; repeat a prompt to sample it several times.
            config: how to sample.
            policy_version: the optimizer step of the weights, kept with the trajectories.
            on_action: called as `on_action(index of the prompt, action)` as soon as an action is taken.

        Returns:
            one rollout per prompt, in order; an empty list for no prompts.

        Raises InputError for an empty prompt, one with tokens out of range, or one too long for the model.
        """
        ...


class HFRolloutEngine:
    """Samples from a Hugging Face causal language model, many rollouts per forward pass.

    Each step feeds every rollout the last token of its current string, at its own position: after an append that is
    the new token, after a deletion the last surviving one, whose keys and values are rewritten unchanged. So the
    model's context is always exactly the surviving string. The model is put in evaluation mode meanwhile and left as
    it was found, no gradients are recorded, and the global random state is not touched.
    """

    def __init__(self, model: PreTrainedModel, space: ActionSpace, batch_size: int = 64) -> None:
        """Bind a model to its action space.

        Args:
            model: the causal language model (unwrapped from DDP or FSDP; PEFT models are welcome).
            space: its actions. Should the model's output be wider than `space.vocab_size`, the rest is ignored.
            batch_size: rollouts under way at a time; results do not depend on it.

        Raises InputError for a model that cannot be rolled back, or a batch size below 1.
        """
        base = getattr(model, "get_base_model", lambda: model)()
        check_supported(base)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size!r}")
        self.model = model
        self.space = space
        self.batch_size = batch_size
        self._keep_last = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
        )

    def rollout(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        policy_version: int = 0,
        on_action: OnAction | None = None,
    ) -> list[Rollout]:
        """Sample one completion per prompt; see `RolloutEngine.rollout`."""
        seed = secrets.randbits(64) if config.seed is None else config.seed
        rows = [_Row(index, self._checked(prompt, config), seed) for index, prompt in enumerate(prompts)]
        with torch.no_grad(), evaluation_mode(self.model):
            for start in range(0, len(rows), self.batch_size):
                self._run(rows[start : start + self.batch_size], config, on_action)
        return [row.result(policy_version) for row in rows]

    def _checked(self, prompt: Sequence[int], config: SamplingConfig) -> list[int]:
        tokens = [int(token) for token in prompt]
        if not tokens:
            raise InputError("a prompt needs at least one token (a beginning-of-text token will do)")
        self.space.check_tokens(tokens, "prompt")
        check_fits(self.model, len(tokens), config.max_completion_length)
        return tokens

    def _run(self, batch: list[_Row], config: SamplingConfig, on_action: OnAction | None) -> None:
        """Roll a batch of rows to their ends, dropping finished ones whenever they are the majority."""
        longest = max(len(row.prompt) for row in batch)
        cache = SlotCache(self.model.config, longest + config.max_completion_length)
        self._prefill(cache, batch)
        while True:
            self._step(batch, self._last_logits(cache, batch), config, on_action)
            alive = [place for place, row in enumerate(batch) if row.finish_reason is None]
            if not alive:
                return
            if 2 * len(alive) < len(batch):
                cache.keep(torch.tensor(alive))
                batch = [batch[place] for place in alive]

    def _prefill(self, cache: SlotCache, batch: list[_Row]) -> None:
        """Fill the slots of all prompt tokens but the last, which the first step feeds.

        Shorter prompts are padded on the right: a pad's slot lies beyond its row's string, so it is never seen
        before a token of the row's own is written there.
        """
        width = max(len(row.prompt) for row in batch) - 1
        if width > 0:
            tokens = torch.tensor([(row.prompt + [0] * width)[:width] for row in batch])
            self._forward(cache, tokens, torch.arange(width).repeat(len(batch), 1))

    def _last_logits(self, cache: SlotCache, batch: list[_Row]) -> Tensor:
        """Raw logits [R, V] at the rows' current states."""
        tokens = torch.tensor([[row.last_token] for row in batch])
        slots = torch.tensor([[len(row.prompt) + len(row.completion) - 1] for row in batch])
        logits = self._forward(cache, tokens, slots)[:, -1].float()
        if logits.shape[-1] < self.space.vocab_size:
            raise InputError(
                f"the model has {logits.shape[-1]} output logits for an action space of {self.space.vocab_size}; "
                "resize the model's embeddings to the tokenizer (see add_backspace_token)"
            )
        return logits[:, : self.space.vocab_size]

    def _forward(self, cache: SlotCache, tokens: Tensor, slots: Tensor) -> Tensor:
        device = next(self.model.get_input_embeddings().parameters()).device
        cache.place(slots.to(device))
        return self.model(
            input_ids=tokens.to(device),
            attention_mask=cache.attention_mask(),
            position_ids=cache.cursor.slots,
            past_key_values=cache,
            use_cache=True,
            **self._keep_last,
        ).logits

    def _step(self, batch: list[_Row], logits: Tensor, config: SamplingConfig, on_action: OnAction | None) -> None:
        """Draw and take the next action of every row that is still going. logits: float [R, V]."""
        lengths = torch.tensor([len(row.completion) for row in batch], device=logits.device)
        taken = torch.tensor([row.deletions for row in batch], device=logits.device)
        policy = mask_illegal(logits, lengths, self.space).log_softmax(-1)
        if policy.isnan().any():
            raise InputError("the model's logits are not finite numbers; its weights have diverged or overflowed")
        final = next_action_logits(
            policy, lengths, self.space, config, deletions_taken=taken, barred=_barred_mask(batch, policy)
        )
        possible = final.max(-1).values > -torch.inf
        uniforms = torch.tensor([row.noise.random() for row in batch], dtype=torch.float64)
        # A row with no action left is drawn from the policy and discarded: one call serves all rows.
        actions = draw_actions(torch.where(possible[:, None], final, policy), uniforms)
        log_probs = policy.gather(-1, actions[:, None]).squeeze(-1)
        for row, can_act, action, log_prob in zip(
            batch, possible.tolist(), actions.tolist(), log_probs.tolist(), strict=True
        ):
            if row.finish_reason is not None:
                continue
            if not can_act:
                row.finish_reason = "no_legal_action"
            elif row.take(action, log_prob, self.space, config) and on_action is not None:
                on_action(row.index, action)


@dataclass
class _Row:
    """A rollout under way."""

    index: int
    prompt: list[int]
    seed: int
    completion: list[int] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    deletions: int = 0
    barred: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.noise = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(self.index,))))

    @property
    def last_token(self) -> int:
        return self.completion[-1] if self.completion else self.prompt[-1]

    def take(self, action: int, log_prob: float, space: ActionSpace, config: SamplingConfig) -> bool:
        """Move to the next state; False if the action would append past the length limit and is not taken."""
        deletion = space.by_token.get(action)
        if action == space.eos_token_id:
            self.finish_reason = "eos"
        elif deletion is not None:
            landing = deletion.landing(len(self.completion))
            if config.retry == "exclude":
                self.barred.setdefault(tuple(self.completion[:landing]), set()).add(self.completion[landing])
            del self.completion[landing:]
            self.deletions += 1
        elif len(self.completion) == config.max_completion_length:
            self.finish_reason = "max_completion_length"
            return False
        else:
            self.completion.append(action)
        self.actions.append(action)
        self.log_probs.append(log_prob)
        if self.finish_reason is None and len(self.actions) == config.action_limit:
            self.finish_reason = "max_actions"
        return True

    def result(self, policy_version: int) -> Rollout:
        assert self.finish_reason is not None
        trajectory = Trajectory(
            prompt_ids=np.array(self.prompt),
            actions=np.array(self.actions, dtype=np.int64),
            terminated=self.finish_reason == "eos",
            source="policy",
            policy_version=policy_version,
        )
        log_probs = np.array(self.log_probs, dtype=np.float64)
        log_probs.setflags(write=False)
        return Rollout(trajectory, log_probs, tuple(self.completion), self.finish_reason)


def _barred_mask(batch: list[_Row], like: Tensor) -> Tensor | None:
    """bool [R, V]: the actions that `exclude` bars at the rows' current strings; None if there are none."""
    pairs = [
        (place, token)
        for place, row in enumerate(batch)
        if row.barred
        for token in row.barred.get(tuple(row.completion), ())
    ]
    if not pairs:
        return None
    mask = torch.zeros(like.shape, dtype=torch.bool)
    places, tokens = zip(*pairs, strict=True)
    mask[list(places), list(tokens)] = True
    return mask.to(like.device)
