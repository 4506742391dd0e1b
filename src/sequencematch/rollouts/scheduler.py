"""Continuous batching: as soon as rollouts end, the next prompts take their slots.

Shapes: R slots (rows of the cache), V actions, m draws of a state.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace
from ..models.legality import mask_illegal_in_tile_
from .decoder import Decoder
from .distribution import SPARE, action_scores, draw
from .events import End, Event
from .plugins import Plugins
from .row import Draws, Row
from .sampling import SamplingConfig

REFILL = 16
"""Prompts are let in once one of so many slots is free: a forward over one short prompt costs like one over several."""


class Scheduler:
    """Rolls rows out to their ends, as many at a time as the decoder has slots."""

    def __init__(
        self, decoder: Decoder, rows: Sequence[Row], space: ActionSpace, config: SamplingConfig, plugins: Plugins
    ) -> None:
        self.decoder = decoder
        self.space = space
        self.config = config
        self.plugins = plugins
        self.queue = deque(rows)
        slots = decoder.cache.rows
        self.live: dict[int, Row] = {}
        """The rollout in each slot that has one."""
        self.held: list[list[int]] = [[] for _ in range(slots)]
        """The prompt whose keys and values each slot begins with, also after its rollout has ended."""
        self.token, self.place = [0] * slots, [0] * slots
        """What was last fed in each slot, and at which position: feeding it again changes nothing."""

    def steps(self, events: list[Event] | None, policy_version: int = 0) -> Iterator[None]:
        """Run; after each step, which gives every live row an appended token or its end, yield.

        Args:
            events: what happened in the step is added to it, if given.
            policy_version: of the rollouts in `End` events.
        """
        while self.queue or self.live:
            with torch.no_grad():
                self._refill()
                self._step(events)
                self._retire(events, policy_version)
            yield

    def _refill(self) -> None:
        """Let the next prompts in. One that a slot already holds is copied from there, or need not even be."""
        free = [slot for slot in range(len(self.held)) if slot not in self.live]
        if not self.queue or (self.live and len(free) * REFILL < len(self.held)):
            return
        holders = {tuple(self.held[slot]): slot for slot in self.live}
        kept = {tuple(self.held[slot]): slot for slot in free}
        fresh: dict[int, list[int]] = {}
        copies: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        while free and self.queue:
            row = self.queue.popleft()
            prompt = tuple(row.prompt)
            slot = kept[prompt] if kept.get(prompt) in free else free[0]
            free.remove(slot)
            if self.held[slot] != row.prompt:
                if prompt in holders:
                    copies[holders[prompt], len(prompt) - 1].append(slot)
                else:
                    fresh[slot] = row.prompt
                self.held[slot] = row.prompt
            holders.setdefault(prompt, slot)
            self.live[slot] = row
            self.token[slot], self.place[slot] = row.last_token, row.slot
        self.decoder.prefill(list(fresh.values()), list(fresh))
        for (source, length), targets in copies.items():
            self.decoder.copy(source, targets, length)

    def _step(self, events: list[Event] | None) -> None:
        slots = sorted(self.live)
        slot_of = {row.index: slot for slot, row in self.live.items()}
        logits = self.decoder.step(self.token, self.place)
        if len(slots) < len(logits):
            logits = logits[slots]
        waiting = [self.live[slot] for slot in slots]
        appended = []
        while waiting:
            self._draw(waiting, logits)
            outcomes = [row.advance(events) for row in waiting]
            appended += [row for row, outcome in zip(waiting, outcomes, strict=True) if outcome == "feed"]
            waiting = [row for row, outcome in zip(waiting, outcomes, strict=True) if outcome == "draw"]
            if waiting:
                logits = self.decoder.again([slot_of[row.index] for row in waiting], [row.slot for row in waiting])
        for row, stops in zip(appended, self.plugins.stops(appended), strict=True):
            if stops:
                row.finish_reason = "stop"
        for slot, row in self.live.items():
            self.token[slot], self.place[slot] = row.last_token, row.slot

    def _draw(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Draw at each row's state. logits: float [len(rows), V], the language model's; overwritten."""
        logits = logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
        device = logits.device
        lengths = torch.tensor([len(row.completion) for row in rows], device=device)
        mask_illegal_in_tile_(logits, 0, lengths, self.space)
        value = logits.logsumexp(-1, keepdim=True)
        taken = None
        if self.config.max_deletions is not None:
            taken = torch.tensor([row.deletions for row in rows], device=device)
        states: list = [None] * len(rows)

        def process(scores: Tensor) -> Tensor:
            scores, states[:] = self.plugins.process(rows, scores)
            return scores

        scores = action_scores(
            logits,
            lengths,
            self.space,
            self.config,
            deletions_taken=taken,
            barred=_barred_mask(rows, logits),
            process=process if self.plugins.processors else None,
        )
        noise = None if self.config.greedy else np.stack([row.uniforms(SPARE) for row in rows])
        actions = draw(scores, self.config, None if noise is None else torch.from_numpy(noise).to(device))
        log_probs = logits.gather(-1, actions) - value
        actions = actions.masked_fill(scores.gather(-1, actions) == -torch.inf, -1)
        # All of it in one transfer: token ids are exact in float64.
        drawn = torch.cat([value.double(), log_probs.double(), actions.double()], -1).tolist()
        count = actions.shape[-1]
        for row, state, (total, *found) in zip(rows, states, drawn, strict=True):
            if not math.isfinite(total):
                raise InputError("the model's logits are not finite numbers; its weights have diverged or overflowed")
            row.draws.append(Draws([int(action) for action in found[count:]], found[:count], row.condition, state))

    def _retire(self, events: list[Event] | None, policy_version: int) -> None:
        """Free the slots of rows that have ended; where nobody waits for them, drop them once they are the majority."""
        for slot, row in list(self.live.items()):
            if row.finish_reason is not None:
                del self.live[slot]
                if events is not None:
                    events.append(End(row.index, row.result(policy_version)))
        if self.live and not self.queue and self.decoder.can_shrink and 2 * len(self.live) <= len(self.held):
            slots = sorted(self.live)
            self.decoder.keep(slots)
            self.live = {place: self.live[slot] for place, slot in enumerate(slots)}
            self.held = [self.held[slot] for slot in slots]
            self.token = [self.token[slot] for slot in slots]
            self.place = [self.place[slot] for slot in slots]


def _barred_mask(rows: Sequence[Row], like: Tensor) -> Tensor | None:
    """bool [R, V]: the actions that `exclude` bars at the rows' current strings; None if there are none."""
    pairs = [(place, token) for place, row in enumerate(rows) for token in row.barred_here]
    if not pairs:
        return None
    mask = torch.zeros(like.shape, dtype=torch.bool)
    places, tokens = zip(*pairs, strict=True)
    mask[list(places), list(tokens)] = True
    return mask.to(like.device)
