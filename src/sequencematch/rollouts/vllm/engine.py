"""Rollouts on vLLM: a deletion ends a request, and the string that it leads to is the next one's prompt."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...mdp import ActionSpace
from ...models import has_adapters, save_merged
from ..events import End, Event
from ..plugins import Plugins
from ..result import Rollout
from ..row import Row
from ..sampling import SamplingConfig
from ..start import start_rows
from .colocated import ColocatedVLLM, on_cpu
from .protocol import Answer, Backend
from .servers import VLLMServers
from .walk import Walk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VLLMRolloutEngine:
    """Samples rollouts on vLLM, in this process (`ColocatedVLLM`) or on servers (`VLLMServers`).

    vLLM only appends. So `<eos>` and deletion tokens are stop tokens: a request ends with what stops it, the deletion
    is made here, and the rollout goes on with a request for the string that is left, whose keys and values vLLM has
    cached. Requests are independent: as soon as one is answered the next is submitted, and vLLM batches them all.
    The distribution of whole trajectories is that of `HFRolloutEngine`; the noise is another.
    """

    def __init__(
        self,
        backend: Backend,
        space: ActionSpace,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model: Any = None,
    ) -> None:
        """Bind vLLM to an action space.

        Args:
            backend: what runs the requests.
            space: the actions of the model that it has.
            tokenizer: finds `stop_strings`; needed for nothing else.
            model: the same policy in this process, for those who measure more of it than samples.
        """
        self.model = model
        self.backend = backend
        self.space = space
        self.tokenizer = tokenizer
        self._version: int | None = None

    def load(self, folder: str, policy_version: int) -> None:
        """Sample with the weights in a folder from now on, those of optimizer step `policy_version`.

        Raises InputError where vLLM cannot be reached.
        """
        self.backend.load(folder, str(policy_version))
        self._version = policy_version

    def expect(self, folder: str, policy_version: int) -> None:
        """As `load`, where somebody else has let the servers take over the weights."""
        self.backend.expect(folder, str(policy_version))
        self._version = policy_version

    def update(self, policy_version: int) -> None:
        """See `RolloutEngine.update`: what vLLM samples changes by `load` alone."""

    def rollout(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        policy_version: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """Sample one completion per prompt; see `RolloutEngine.rollout`.

        Args:
            prompts: token ids, each of at least one; repeat a prompt to sample it several times.
            config: how to sample.
            policy_version: the optimizer step of the weights, kept with the trajectories; None takes that of `load`.
            seeds: a seed for each prompt, in place of `config.seed` and the index.

        Returns:
            one rollout per prompt, in order; interrupted, those under way as far as they are known.

        Raises InputError for a bad prompt, one that is too long for the model, where vLLM cannot be reached, and for
        answers of other weights than those that were loaded.
        """
        rows = self._start(prompts, config, policy_version, seeds)
        try:
            for _ in self._steps(rows, config):
                pass
        except KeyboardInterrupt:
            pass  # what is not finished says so
        return [row.result(self._of(policy_version)) for row in rows]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        policy_version: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[Event]:
        """Sample as `rollout` does, and yield `Append`, `Delete` and `End` with each request that is answered."""
        rows = self._start(prompts, config, policy_version, seeds)
        events: list[Event] = []
        for ended in self._steps(rows, config, events):
            yield from events
            events.clear()
            for row in ended:
                yield End(row.index, row.result(self._of(policy_version)))

    def _of(self, policy_version: int | None) -> int:
        """The version to record rollouts under."""
        return (self._version or 0) if policy_version is None else policy_version

    def _start(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        policy_version: int | None,
        seeds: Sequence[int] | None,
    ) -> list[Row]:
        version = self._of(policy_version)
        if self._version is not None and version != self._version:
            raise InputError(
                f"vLLM has the weights of optimizer step {self._version}, and these rollouts would be recorded as the "
                f"policy's of step {version}; load the weights first"
            )
        rows = start_rows(prompts, self.space, config, seeds)
        self._check_fits(max((len(row.prompt) for row in rows), default=0) + config.max_completion_length)
        return rows

    def _steps(
        self, rows: Sequence[Row], config: SamplingConfig, events: list[Event] | None = None
    ) -> Iterator[list[Row]]:
        """Roll rows out to their ends, adding to `events` what happens; yields after each poll those that ended."""
        plugins = Plugins((), (), config.stop_strings, self.tokenizer)
        stops = (self.space.eos_token_id, *self.space.by_token, *config.stop_token_ids)
        walks = {row.index: Walk(row, plugins) for row in rows}
        self.backend.open(config, stops, tuple(self.space.by_token))
        waiting = deque(walks)
        under_way = 0
        try:
            while waiting or under_way:
                ended: list[Row] = []
                while waiting and under_way < self.backend.concurrency:
                    under_way += self._ask(walks[waiting.popleft()], ended)
                for answer in self.backend.poll() if under_way else ():
                    self._check_version(answer)
                    walks[answer.row].take(answer, events)
                    under_way -= 1 - self._ask(walks[answer.row], ended)
                yield ended
        finally:
            self.backend.abort()

    def _ask(self, walk: Walk, ended: list[Row]) -> bool:
        """Submit what a rollout needs next, unless it has ended, which `ended` is told."""
        request = walk.request()
        if request is None:
            ended.append(walk.row)
            return False
        self.backend.submit(request)
        return True

    def _check_version(self, answer: Answer) -> None:
        if self._version is not None and set(answer.versions) != {str(self._version)}:
            raise InputError(
                f"vLLM answered with the weights of {', '.join(answer.versions) or 'no known version'}, not of step "
                f"{self._version}; something else changes them, or this vLLM does not label its answers"
            )

    def _check_fits(self, length: int) -> None:
        longest = self.backend.max_length
        # vLLM counts the token that is sampled, even the one at the limit that is not taken.
        if longest is not None and length + 1 > longest:
            raise InputError(
                f"a prompt and a completion of {length} tokens together, and the action after them, do not fit vLLM's "
                f"max_model_len of {longest}; shorten the prompt, lower max_completion_length, or raise max_model_len"
            )


def load_vllm(
    folder: str, model: Any, space: ActionSpace, tokenizer: PreTrainedTokenizerBase, base_urls: str | None = None
) -> VLLMRolloutEngine:
    """vLLM with a saved model: in this process, or where servers have it.

    Args:
        folder: of the model; adapters are merged.
        model: the same, loaded.
        space: its actions.
        tokenizer: its tokenizer.
        base_urls: addresses of the servers that serve it, separated by commas; None loads it here.

    Raises InputError if vLLM is not installed, or a server does not answer.
    """
    if base_urls:
        return VLLMRolloutEngine(VLLMServers(base_urls), space, tokenizer, model)
    with ExitStack() as stack:
        if has_adapters(model):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            save_merged(model, folder)
        return VLLMRolloutEngine(ColocatedVLLM(folder, **on_cpu()), space, tokenizer, model)
