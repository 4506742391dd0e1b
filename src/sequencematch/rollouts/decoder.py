"""The model over slots: prompts in, then the logits at every row's state, one token of each row at a time.

Shapes: R rows, S slots, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.attention import prompt_masks
from ..models.head import LogitTransform, head_logits
from ..models.prepare import compute_dtype, core_of
from .cache import SlotCache
from .graphs import StepGraphs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS = 4096
"""Most tokens of a forward over prompts; a longer prompt goes alone."""
SLOT_BLOCK = 16
"""Attention looks at a multiple of so many slots, so that its shapes seldom change."""


class Decoder:
    """Keys, values and last hidden states of R rows. Used under `torch.no_grad`, with planned attention."""

    def __init__(self, model: PreTrainedModel, vocab_size: int, rows: int, capacity: int) -> None:
        """Allocate slots.

        Args:
            model: the causal language model, with an extended forward.
            vocab_size: V; should the model's output be wider, the rest is ignored.
            rows: R.
            capacity: S, the length of the longest string a row can hold.
        """
        self.model: Any = model
        self.core: Any = core_of(model)
        self.vocab_size = vocab_size
        self.device: torch.device = self.core.get_input_embeddings().weight.device
        self.cache = SlotCache(model.config, rows, capacity)
        self.rows = torch.arange(rows, device=self.device)
        self.hidden: Tensor | None = None
        """float [R, S, D]: the last hidden state at every slot, so that a state once reached is never run again."""
        self.graphs = StepGraphs(self._step, rows, self.device) if StepGraphs.suit(self.core, self.device) else None

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
        """Fill the slots of all tokens of some prompts but the last, which the first step feeds."""
        order = sorted((i for i, prompt in enumerate(prompts) if len(prompt) > 1), key=lambda i: len(prompts[i]))
        batch: list[int] = []
        for i in order:
            if batch and sum(len(prompts[j]) - 1 for j in (*batch, i)) > PREFILL_TOKENS:
                self._prefill([prompts[j] for j in batch], [rows[j] for j in batch])
                batch = []
            batch.append(i)
        if batch:
            self._prefill([prompts[j] for j in batch], [rows[j] for j in batch])

    def _prefill(self, prompts: list[Sequence[int]], rows: list[int]) -> None:
        lengths = [len(prompt) - 1 for prompt in prompts]
        tokens = torch.tensor([token for prompt in prompts for token in prompt[:-1]], device=self.device)
        slots = torch.cat([torch.arange(length) for length in lengths]).to(self.device)
        places = torch.tensor(rows).repeat_interleave(torch.tensor(lengths)).to(self.device)
        self.cache.place(places, slots, None)
        tiles = [(count, length) for length, count in Counter(lengths).items()]
        masks = prompt_masks(self.core.config, tiles, compute_dtype(self.core), self.device)
        self._forward(tokens, slots, masks, lambda head, hidden, transform: None)

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Give some rows the first `length` tokens of another."""
        self.cache.copy(source, torch.tensor(targets), length)

    def step(self, tokens: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Feed each row a token at a slot, both [R]; returns the raw logits there, float [R, V].

        A row that has nothing new is fed its last token again, which changes nothing.
        """
        used = min(-(-(max(slots) + 1) // SLOT_BLOCK) * SLOT_BLOCK, self.cache.capacity)
        where = torch.tensor([tokens, slots], device=self.device)
        if self.graphs is not None:
            return self.graphs.step(where, used, self.cache.capacity)
        return self._step(where, used)

    def _step(self, where: Tensor, used: int) -> Tensor:
        tokens, slots = where
        self.cache.place(self.rows, slots, used)
        masks = self.cache.step_masks(compute_dtype(self.core))

        def read(head: nn.Module, hidden: Tensor, transform: LogitTransform) -> Tensor:
            if self.hidden is None:
                self.hidden = hidden.new_zeros(len(self.rows), self.cache.capacity, hidden.shape[-1])
            self.hidden[self.rows.to(hidden.device), slots.to(hidden.device)] = hidden
            return self._logits(head, hidden, transform)

        return self._forward(tokens, slots, masks, read)

    def again(self, rows: Sequence[int], slots: Sequence[int]) -> Tensor:
        """The raw logits, float [M, V], at M states that were reached before: from their kept hidden states."""
        assert self.hidden is not None
        hidden = self.hidden[list(rows), list(slots)]
        # The ids only tell a wrapper's forward that this is a batch.
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=self.device)
        return self.model(input_ids=ids, hidden=hidden, read=self._logits)

    def _logits(self, head: nn.Module, hidden: Tensor, transform: LogitTransform) -> Tensor:
        logits = head_logits(head, hidden, transform)
        if logits.shape[-1] < self.vocab_size:
            raise InputError(
                f"the model has {logits.shape[-1]} output logits for an action space of {self.vocab_size}; "
                "resize the model's embeddings to the tokenizer (see add_backspace_token)"
            )
        return logits[:, : self.vocab_size]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, in their new order."""
        kept = torch.tensor(rows, device=self.device)
        self.cache.keep(kept)
        self.rows = torch.arange(len(rows), device=self.device)
        if self.hidden is not None:
            self.hidden = self.hidden[kept]

    @property
    def can_shrink(self) -> bool:
        """Whether dropping rows saves time: a captured step has a fixed number of them."""
        return self.graphs is None

    def _forward(self, tokens: Tensor, slots: Tensor, masks: Any, read: Any) -> Any:
        return self.model(
            input_ids=tokens[None],
            attention_mask=masks,
            position_ids=slots[None],
            past_key_values=self.cache,
            use_cache=True,
            read=read,
        )
