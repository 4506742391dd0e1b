"""MAUVE: how close the distribution of generated texts is to that of texts people wrote.

Pillutla et al. 2021 (arXiv 2102.01454), by their own package mauve-text, which is an optional one:

    texts = equal_lengths(generated_ids, reference_ids, 256)
    features = [featurize(ids, model) for ids in (texts.generated, texts.reference)]
    mauve_score(*features)

Scores compare only where the model of the features, the length and the number of texts are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from ..models import evaluation_mode, max_positions
from ..models.prepare import core_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_PER_BUCKET = 10
"""The paper's rule: k-means makes a tenth as many clusters as there are texts."""

FEWEST_TEXTS = 2 * TEXTS_PER_BUCKET
"""On each side: two clusters."""


@dataclass(frozen=True)
class Mauve:
    """MAUVE of one set of texts against another."""

    mean: float
    """Over the k-means seeds: near 0 for texts with nothing in common, about 0.96 for two samples of the same texts."""
    low: float
    """The lowest over the k-means seeds. The spread is that of the clustering alone, not that of other texts."""
    high: float
    """The highest of them."""
    values: tuple[float, ...]
    """The score of each seed, in the order of the seeds."""
    n: int
    """Texts on the side that has fewer."""
    buckets: int
    """Clusters that both sides were sorted into."""


@dataclass(frozen=True)
class EqualLengths:
    """Token sequences of one length, and how many were too short for it."""

    generated: list[list[int]]
    """The generated ones."""
    reference: list[list[int]]
    """Those they are compared with."""
    dropped_generated: int
    """Generated sequences that were shorter and were left out."""
    dropped_reference: int
    """The same of the others."""


def equal_lengths(generated: Sequence[Sequence[int]], reference: Sequence[Sequence[int]], length: int) -> EqualLengths:
    """Cut all token sequences to one length, and leave out the shorter ones on both sides.

    The features of a text tell how long it is, so MAUVE is taken between texts of one length. It is chosen beforehand,
    and the same for all that is compared: one found in the sequences themselves would be another for each model. The
    score then speaks of the beginnings of texts that are at least so long. How many were not is counted, and belongs
    beside the score: a model that ends its texts too early shows there and not in MAUVE.

    Raises InputError if a side has no sequence that is long enough, or for a length below 1.
    """
    if length < 1:
        raise InputError(f"texts are cut to a length of at least one token, not {length}")
    cut = [[list(ids[:length]) for ids in side if len(ids) >= length] for side in (generated, reference)]
    if not all(cut):
        longest = min(max((len(ids) for ids in side), default=0) for side in (generated, reference))
        raise InputError(
            f"no text on one side has {length} tokens; choose a length of at most {longest}, or more texts"
        )
    return EqualLengths(cut[0], cut[1], len(generated) - len(cut[0]), len(reference) - len(cut[1]))


def featurize(
    texts: Sequence[str] | Sequence[Sequence[int]],
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 1024,
    batch_size: int = 8,
) -> np.ndarray:
    """What a model makes of each text: its last layer's hidden state at the text's last token, as mauve-text takes it.

    Args:
        texts: strings, or token ids of the model's own tokenizer.
        model: any transformers model, on its device; the paper's is gpt2-large. Run in evaluation mode, and put back.
        tokenizer: the model's, to tokenize strings with.
        max_length: texts are cut to so many tokens.
        batch_size: texts in one forward pass, padded on the right.

    Returns:
        float32 [texts, D].

    Raises InputError for no texts, one without any token, strings without a tokenizer, ids that are not in the model's
    vocabulary, and texts that are longer than its positions.
    """
    ids = _token_ids(texts, tokenizer, max_length)
    core = core_of(model)
    _check_ids(ids, core)
    features = []
    with evaluation_mode(core), torch.no_grad():
        for start in range(0, len(ids), batch_size):
            rows = [torch.tensor(row, device=core.device) for row in ids[start : start + batch_size]]
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            inputs = pad_sequence(rows, batch_first=True)
            # The backbone alone: nobody needs the logits of every token here.
            output = core.base_model(input_ids=inputs, attention_mask=mask, use_cache=False)
            features.append(output.last_hidden_state[torch.arange(len(rows)), mask.sum(1) - 1].float().cpu())
    return torch.cat(features).numpy()


def mauve_score(generated: np.ndarray, reference: np.ndarray, *, seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> Mauve:
    """MAUVE from features, float [N, D] and [M, D], once for each k-means seed, with all of the paper's settings.

    The texts go into round(min(N, M) / 10) clusters. The score of few texts is too high, and uncertain: Gaussians of 16
    dimensions that have 0.45 to 0.50 with 3,000 on each side have anything from 0.58 to 0.94 with 50. The paper has
    5,000. No global random state is used.

    Raises InputError if mauve-text is missing, for features that are not finite, not of one width or all the same, for
    fewer than 20 texts on a side (two clusters), and without seeds.
    """
    found = [np.asarray(features) for features in (generated, reference)]
    _check_features(found)
    if not seeds:
        raise InputError("MAUVE needs at least one k-means seed")
    compute_mauve = _load()
    n = min(len(features) for features in found)
    buckets = round(n / TEXTS_PER_BUCKET)
    with _quiet():
        values = tuple(
            float(compute_mauve(p_features=found[1], q_features=found[0], num_buckets=buckets, seed=seed).mauve)
            for seed in seeds
        )
    return Mauve(float(np.mean(values)), min(values), max(values), values, n, buckets)


def _load() -> Any:
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise InputError("MAUVE needs the mauve-text package; pip install 'sequencematch[mauve]'") from error
    return compute_mauve


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what faiss writes to the process's standard error: it wants more texts per cluster than the paper has."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _check_features(sides: Sequence[np.ndarray]) -> None:
    if any(features.ndim != 2 for features in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise InputError(
            f"features are two arrays of texts by width, not of shapes {sides[0].shape} and {sides[1].shape}; "
            "take both from the same model"
        )
    if min(len(features) for features in sides) < FEWEST_TEXTS:
        raise InputError(
            f"MAUVE needs at least {FEWEST_TEXTS} texts on each side, and better thousands; give more texts"
        )
    if not all(np.isfinite(features).all() for features in sides):
        raise InputError("some features are not finite; use another model to take them from")
    if not np.ptp(np.concatenate(sides), axis=0).any():
        raise InputError("all texts have the same features; MAUVE has nothing to compare")


def _token_ids(texts: Sequence[Any], tokenizer: Any, max_length: int) -> list[list[int]]:
    if any(isinstance(text, str) for text in texts):
        if tokenizer is None:
            raise InputError("texts that are strings need the model's tokenizer; give it, or token ids")
        texts = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    ids = [[int(token) for token in text[:max_length]] for text in texts]
    if not ids or not all(ids):
        raise InputError("features are taken of at least one text, and every text needs a token; leave empty ones out")
    return ids


def _check_ids(ids: list[list[int]], core: Any) -> None:
    longest, positions = max(len(row) for row in ids), max_positions(core)
    if positions is not None and longest > positions:
        raise InputError(f"the longest text has {longest} tokens, the model {positions} positions; lower max_length")
    vocabulary = core.get_input_embeddings().num_embeddings
    if min(min(row) for row in ids) < 0 or max(max(row) for row in ids) >= vocabulary:
        raise InputError(f"a token id is not among the model's {vocabulary}; tokenize with the model's own tokenizer")
