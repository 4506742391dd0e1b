"""One rollout through vLLM: which request its state asks for, and the actions that an answer holds."""

from __future__ import annotations

import math

from ..events import Event
from ..plugins import Plugins
from ..row import Row
from .protocol import Answer, Request


class Walk:
    """A row and what is next to be asked for it.

    A request runs over many states, and what is illegal or barred differs from state to state. Where no filter (top-k,
    top-p, min-p) looks at the whole distribution, an illegal deletion is simply refused and the state asked once more
    without it, which is the distribution over legal actions exactly: p(a) + p(illegal) p(a) / (1 - p(illegal)). With a
    filter, and for what `exclude` bars, the state is asked alone, without those actions.
    """

    def __init__(self, row: Row, plugins: Plugins) -> None:
        self.row = row
        self._plugins = plugins
        self._refused = False
        self._free_from = max((deletion.minimum_completion for deletion in row.space.deletions), default=0)
        self._impossible = {token for token, bias in row.config.logit_bias.items() if bias == -math.inf}

    def request(self) -> Request | None:
        """What to ask for next. None once the rollout has ended, which it does here if nothing may be done any more."""
        row, config = self.row, self.row.config
        if row.finish_reason is not None:
            return None
        spent = config.max_deletions is not None and row.deletions >= config.max_deletions
        always = set(row.space.by_token) if spent or not config.allow_backspace else set()
        here = set(row.barred_here)
        if self._refused or (config.filters and not config.greedy):
            here |= {token for token in row.space.by_token if not row.space.is_legal(token, len(row.completion))}
        here -= always
        if len(always | here | self._impossible) == row.space.vocab_size:
            row.finish_reason = "no_legal_action"
            return None
        # At the limit of its length the policy is still asked, so that it may end or delete.
        room = min(config.max_completion_length - len(row.completion) + 1, config.action_limit - len(row.actions))
        return Request(
            row=row.index,
            token_ids=(*row.prompt, *row.completion),
            seed=row.seed(),
            max_tokens=1 if here else room,
            forbidden=(*sorted(always), *sorted(here)),
            tells_deletions=len(row.completion) < self._free_from,
        )

    def take(self, answer: Answer, events: list[Event] | None = None) -> None:
        """Take the actions of an answer, up to one that is illegal or ends the rollout; `events` tell what they do."""
        self._refused = False
        steps = zip(answer.token_ids, answer.log_probs, answer.deletion_log_probs, strict=True)
        for action, log_prob, deletions in steps:
            if not self.row.space.is_legal(action, len(self.row.completion)):
                self._refused = True
                return
            log_prob -= math.log1p(-self._illegal_mass(deletions))
            before = len(self.row.completion)
            if not self.row.take(action, log_prob):
                return
            if events is not None and action != self.row.space.eos_token_id:
                events.append(self.row.event(action, before))
            if (
                len(self.row.completion) > before
                and self.row.finish_reason is None
                and self._plugins.stops([self.row])[0]
            ):
                self.row.finish_reason = "stop"
            if self.row.finish_reason is not None:
                return

    def _illegal_mass(self, deletions: tuple[float, ...]) -> float:
        """How much of the raw softmax goes to deletions that are illegal in this state."""
        length = len(self.row.completion)
        found = zip(self.row.space.deletions, deletions, strict=True)
        return math.fsum(math.exp(log_prob) for deletion, log_prob in found if length < deletion.minimum_completion)
