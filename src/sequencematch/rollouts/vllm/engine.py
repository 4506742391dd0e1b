"""Rollouts on vLLM: a deletion ends a request, and the string that it leads to is the next one's prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import InputError
from ...mdp import ActionSpace
from ..plugins import Plugins
from ..result import Rollout
from ..sampling import SamplingConfig
from ..start import start_rows
from .protocol import Answer, Backend
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

    def __init__(self, backend: Backend, space: ActionSpace, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Bind vLLM to an action space.

        Args:
            backend: what runs the requests.
            space: the actions of the model that it has.
            tokenizer: finds `stop_strings`; needed for nothing else.
        """
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
        version = self._version if policy_version is None else policy_version
        if self._version is not None and version != self._version:
            raise InputError(
                f"vLLM has the weights of optimizer step {self._version}, and these rollouts would be recorded as the "
                f"policy's of step {version}; load the weights first"
            )
        rows = start_rows(prompts, self.space, config, seeds)
        self._check_fits(max((len(row.prompt) for row in rows), default=0) + config.max_completion_length)
        plugins = Plugins((), (), config.stop_strings, self.tokenizer)
        stops = (self.space.eos_token_id, *self.space.by_token, *config.stop_token_ids)
        self.backend.open(config, stops, tuple(self.space.by_token))
        try:
            self._run({row.index: Walk(row, plugins) for row in rows})
        except KeyboardInterrupt:
            pass  # what is not finished says so
        finally:
            self.backend.abort()
        return [row.result(version or 0) for row in rows]

    def _run(self, walks: dict[int, Walk]) -> None:
        waiting = deque(walks)
        under_way = 0
        while waiting or under_way:
            while waiting and under_way < self.backend.concurrency:
                under_way += self._ask(walks[waiting.popleft()])
            if not under_way:
                continue  # nothing could be asked: the next ones, if there are any
            for answer in self.backend.poll():
                self._check_version(answer)
                walks[answer.row].take(answer)
                under_way -= 1 - self._ask(walks[answer.row])

    def _ask(self, walk: Walk) -> bool:
        """Submit what a rollout needs next, if it has not ended."""
        request = walk.request()
        if request is not None:
            self.backend.submit(request)
        return request is not None

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
