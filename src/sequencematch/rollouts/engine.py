"""Sampling in this process, from a Hugging Face causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..mdp import ActionSpace
from ..models.modes import evaluation_mode
from ..models.prepare import core_of, extend_forward, planned_attention
from ..models.support import check_fits, irreversible_reason, unsupported
from .decoder import Decoder
from .events import Event
from .plugins import Plugins
from .proof import prove_rollback
from .result import Rollout
from .row import Row
from .sampling import SamplingConfig
from .scheduler import Scheduler
from .start import start_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HFRolloutEngine:
    """Samples many rollouts at a time, each of which takes tokens back on its own; see `RolloutEngine.rollout`.

    A deletion costs nothing: keys and values lie at their positions and are written over, and the next action is
    drawn at once from the state that the deletion led to, whose distribution is known. A rollout that ends makes
    room for the next prompt. Equal prompts are run once. What the model sees is exactly the surviving string: the first
    time that a model is sampled this is checked, and a family for which it fails is refused.

    The model is put in evaluation mode meanwhile and left as it was found, no gradients are recorded, and the global
    random state is not touched.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        space: ActionSpace,
        batch_size: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Bind a model to its action space.

        Args:
            model: the causal language model (unwrapped from DDP or FSDP; PEFT models are welcome).
            space: its actions. Should the model's output be wider than `space.vocab_size`, the rest is ignored.
            batch_size: rollouts under way at a time; results do not depend on it.
            tokenizer: finds `stop_strings`; needed for nothing else.

        Raises InputError for a model that cannot be rolled back, or a batch size below 1.
        """
        self._core = core_of(model)
        reason = irreversible_reason(self._core)
        if reason:
            raise unsupported(self._core, reason)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size!r}")
        extend_forward(self._core)
        self.model = model
        self.space = space
        self.batch_size = batch_size
        self.tokenizer = tokenizer

    def rollout(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        policy_version: int = 0,
        seeds: Sequence[int] | None = None,
        logits_processor: Sequence[Any] = (),
        stopping_criteria: Sequence[Any] = (),
    ) -> list[Rollout]:
        """Sample one completion per prompt; see `RolloutEngine.rollout`.

        Args:
            prompts: token ids, each of at least one; repeat a prompt to sample it several times.
            config: how to sample.
            policy_version: the optimizer step of the weights, kept with the trajectories.
            seeds: a seed for each prompt, in place of `config.seed` and the index: its rollout does not depend on what
                else is sampled with it.
            logits_processor: logits processors of transformers, called on one row at a time with the surviving string
                (prompt included). Those with state are copied along and rolled back.
            stopping_criteria: stopping criteria of transformers, called likewise after each appended token.

        Returns:
            one rollout per prompt, in order.

        Raises InputError for a bad prompt, and for a processor that cannot be rolled back.
        """
        rows = self.start(prompts, config, seeds)
        plugins = Plugins(logits_processor, stopping_criteria, config.stop_strings, self.tokenizer)
        try:
            for _ in self.run(rows, config, plugins, None, policy_version):
                pass
        except KeyboardInterrupt:
            pass  # what is not finished says so
        return [row.result(policy_version) for row in rows]

    def update(self, policy_version: int) -> None:
        """See `RolloutEngine.update`: this engine runs the policy itself, which is always as it is."""

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        policy_version: int = 0,
        seeds: Sequence[int] | None = None,
        logits_processor: Sequence[Any] = (),
        stopping_criteria: Sequence[Any] = (),
    ) -> Iterator[Event]:
        """Sample as `rollout` does, and yield what happens when it happens: `Append`, `Delete`, `End`.

        The model is in evaluation mode until the iterator is exhausted or closed.
        """
        rows = self.start(prompts, config, seeds)
        plugins = Plugins(logits_processor, stopping_criteria, config.stop_strings, self.tokenizer)
        events: list[Event] = []
        for _ in self.run(rows, config, plugins, events, policy_version):
            yield from events
            events.clear()

    def run(
        self,
        rows: list[Row],
        config: SamplingConfig,
        plugins: Plugins,
        events: list[Event] | None = None,
        policy_version: int = 0,
    ) -> Iterator[None]:
        """Roll rows out to their ends, adding to `events` what happens; yields after each step."""
        if not rows:
            return
        capacity = max(len(row.prompt) for row in rows) + config.max_completion_length
        with planned_attention(self._core), evaluation_mode(self.model):
            prove_rollback(self.model)
            decoder = Decoder(self.model, self.space.vocab_size, min(self.batch_size, len(rows)), capacity)
            yield from Scheduler(decoder, rows, self.space, config, plugins).steps(events, policy_version)

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seeds: Sequence[int] | None = None,
        paddings: Sequence[Sequence[int]] | None = None,
    ) -> list[Row]:
        """The rollouts of some prompts before their first action; see `rollout` and `Row`. Raises InputError."""
        rows = start_rows(prompts, self.space, config, seeds, paddings)
        check_fits(self._core, max((len(row.prompt) for row in rows), default=0), config.max_completion_length)
        return rows
