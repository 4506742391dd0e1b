"""The first time that a model is sampled: a string reached through deletions against a forward pass on it alone."""

from __future__ import annotations

from typing import Any

import torch

from ..models.prepare import core_of, differs, has_whole_head
from ..models.support import unsupported
from .decoder import Decoder

PROMPTS = ([1, 2, 3, 4], [5, 1])
WALK = (([4, 1], [3, 1]), ([6, 2], [4, 2]), ([1, 3], [5, 3]), ([3, 4], [4, 2]))
"""Tokens fed and their slots. The last ones go where others were: one deletion, and two at once."""
ENDS = ([1, 2, 3, 4, 3], [5, 1, 4])


@torch.no_grad()
def prove_rollback(model: Any) -> None:
    """Raise InputError unless deleting tokens gives what a fresh forward gives; checked once for each model.

    Used in evaluation mode, with planned attention.
    """
    core = core_of(model)
    if getattr(core, "proven_rollback", False) or not has_whole_head(core):
        return
    vocabulary = len(core.get_output_embeddings().weight)
    decoder = Decoder(model, vocabulary, rows=2, capacity=8)
    decoder.prefill([_within(prompt, vocabulary) for prompt in PROMPTS], [0, 1])
    for tokens, slots in WALK:
        logits = decoder.step(_within(tokens, vocabulary), slots)
    for row, string in enumerate(ENDS):
        ids = torch.tensor([_within(string, vocabulary)], device=core.device)
        alone = model(input_ids=ids, use_cache=False).logits[:, -1]
        error = differs(core, logits[row : row + 1], alone)
        if error is not None:
            raise unsupported(core, f"after deletions it differs from a forward on the surviving string by {error:.1%}")
    core.proven_rollback = True


def _within(tokens: list[int], vocabulary: int) -> list[int]:
    return [token % vocabulary for token in tokens]
