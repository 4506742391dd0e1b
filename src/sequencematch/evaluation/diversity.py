"""How varied generated texts are, and how much they repeat themselves, by their n-grams.

A text is a sequence of tokens: token ids, or anything else that can be hashed. All but `repetition` take several
texts. A text with fewer than n tokens has no n-gram and contributes nothing; where no text has any, InputError is
raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from ..errors import InputError

Text = Sequence[Hashable]


def ngram_entropy(texts: Sequence[Text], n: int = 4) -> float:
    """The entropy, in nats, of the distribution of n-grams in all texts together: Ent-n of Zhang et al. (2018).

    (Generating Informative and Diverse Conversational Responses via Adversarial Information Maximization, arXiv
    1809.05972.) It can be no higher than the logarithm of the number of n-grams, and grows with it, so only equal
    amounts of text compare.
    """
    counts = _counts(texts, n)
    frequency = np.array(list(counts.values())) / counts.total()
    return float(-(frequency * np.log(frequency)).sum()) + 0.0  # and not -0.0


def repetition(text: Text, n: int = 4) -> float:
    """The share of a text's n-grams that it has had before, 1 - |unique n-grams| / |n-grams|.

    rep-n of Welleck et al. (2020, arXiv 1908.04319), as a fraction. It grows with the text's length.
    """
    return float(np.mean(_repetitions([text], n)))


def diversity(texts: Sequence[Text]) -> float:
    """The product over n = 2, 3, 4 of 1 - rep-n (Su et al. 2022, arXiv 2202.06417); 1 where no text repeats itself.

    rep-n is the mean over texts of `repetition`, as their equation has it for one text. (Their program adds up the
    n-grams of all texts first, which weighs long texts more: the same where all are equally long.)
    """
    return float(np.prod([1 - np.mean(_repetitions(texts, n)) for n in (2, 3, 4)]))


def distinct(texts: Sequence[Text], n: int) -> float:
    """The share of unique n-grams among those of all texts together: distinct-n (Li et al. 2016, arXiv 1510.03055).

    As in most later work, of n-grams; Li et al. divide by the number of tokens, which is n - 1 higher for each text.
    It falls with the amount of text, so only equal amounts compare.
    """
    counts = _counts(texts, n)
    return len(counts) / counts.total()


def text_metrics(texts: Sequence[Text]) -> dict[str, float]:
    """`entropy` (n = 4), `diversity`, `repetition` (the mean over texts, n = 4), `distinct_1` and `distinct_2`.

    Raises InputError if no text has four tokens.
    """
    return {
        "entropy": ngram_entropy(texts),
        "diversity": diversity(texts),
        "repetition": float(np.mean(_repetitions(texts, 4))),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
    }


def _repetitions(texts: Sequence[Text], n: int) -> list[float]:
    """rep-n of each text that has an n-gram."""
    found = [ngrams for ngrams in (_ngrams(text, n) for text in texts) if ngrams]
    if not found:
        raise _too_short(n)
    return [1 - len(set(ngrams)) / len(ngrams) for ngrams in found]


def _counts(texts: Sequence[Text], n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each n-gram comes in all texts together."""
    counts = Counter(ngram for text in texts for ngram in _ngrams(text, n))
    if not counts:
        raise _too_short(n)
    return counts


def _ngrams(text: Text, n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise InputError(f"an n-gram has at least one token, not {n}")
    # Two tensors of one number are not the same key, their numbers are.
    tokens = text.tolist() if hasattr(text, "tolist") else text
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def _too_short(n: int) -> InputError:
    return InputError(f"no text has {n} tokens to make an n-gram of; give longer texts, or leave this metric out")
