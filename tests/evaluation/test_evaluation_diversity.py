import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sequencematch import InputError
from sequencematch.evaluation.diversity import distinct, diversity, ngram_entropy, repetition, text_metrics

texts_of_tokens = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=5)


def test_entropy_by_hand():
    # ab 2, bc 1, ba 1 of 4
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert ngram_entropy(["abc", "aba", "z"], 2) == pytest.approx(expected)


def test_entropy_is_that_of_all_texts_together():
    assert ngram_entropy([[1, 2], [3, 4]], 2) == pytest.approx(math.log(2))
    assert ngram_entropy([[1, 2], [1, 2]], 2) == 0
    assert math.copysign(1, ngram_entropy([[1, 2]], 2)) == 1


def test_entropy_is_of_four_grams_unless_told():
    text = [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert ngram_entropy([text]) == ngram_entropy([text], 4) != ngram_entropy([text], 3)


def test_repetition_by_hand():
    assert repetition("abab", 2) == pytest.approx(1 / 3)
    assert repetition("abab", 3) == 0
    assert repetition("aaaaa", 1) == pytest.approx(4 / 5)
    assert repetition([7] * 10, 4) == pytest.approx(6 / 7)


def test_diversity_by_hand():
    # aaaa: rep-2 is 2/3, rep-3 is 1/2, rep-4 is 0; abcde repeats nothing.
    assert diversity(["aaaa"]) == pytest.approx(1 / 3 * 1 / 2)
    assert diversity(["abcde"]) == 1
    assert diversity(["aaaa", "abcde"]) == pytest.approx((1 - 1 / 3) * (1 - 1 / 4))


def test_every_text_counts_alike_in_diversity():
    """And not every n-gram, by which the long one would count thrice."""
    short, long = "aaaa", "abcdefghijkl"
    pooled = math.prod(1 - (1 - (1 + 13 - n) / (5 - n + 13 - n)) for n in (2, 3, 4))
    assert diversity([short, long]) == pytest.approx(2 / 3 * 3 / 4)
    assert pooled > diversity([short, long]) + 0.1


def test_short_texts_contribute_nothing():
    text = "aaaabc"
    for short in ("", "a", "ab", "aba"):
        assert diversity([text, short]) <= 1
        assert text_metrics([text, short])["repetition"] == text_metrics([text])["repetition"]
        assert ngram_entropy([text, short]) == ngram_entropy([text])
    # A text of 3 tokens has a rep-2 and a rep-3, but no rep-4.
    assert diversity([text, "aaa"]) == pytest.approx((1 - (3 / 5 - 1 / 5 + 1 / 2) / 2) * (1 - (1 / 4) / 2))


def test_distinct_by_hand():
    assert distinct(["abab", "ab"], 1) == pytest.approx(2 / 6)
    assert distinct(["abab", "ab"], 2) == pytest.approx(2 / 4)
    assert distinct(["abc", "d"], 2) == 1


def test_all_metrics_at_once():
    texts = ["abcabcabc", "aabbaabb"]
    assert text_metrics(texts) == {
        "entropy": ngram_entropy(texts, 4),
        "diversity": diversity(texts),
        "repetition": (repetition(texts[0], 4) + repetition(texts[1], 4)) / 2,
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
    }
    assert all(type(value) is float for value in text_metrics(texts).values())


def test_tensors_and_arrays_are_token_ids():
    ids = [[1, 2, 1, 2, 1], [2, 2, 2, 2, 2]]
    assert text_metrics(torch.tensor(ids)) == text_metrics(np.array(ids)) == text_metrics(ids)


@given(texts_of_tokens, st.integers(1, 4))
def test_identities(texts, n):
    ngrams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    if not ngrams:
        for metric in (ngram_entropy, distinct):
            with pytest.raises(InputError, match=f"no text has {n} tokens"):
                metric(texts, n)
        return
    entropy = ngram_entropy(texts, n)
    shares = [count / len(ngrams) for count in Counter(ngrams).values()]
    assert entropy == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert -1e-12 <= entropy <= math.log(len(set(ngrams))) + 1e-12
    assert distinct(texts, n) == len(set(ngrams)) / len(ngrams)
    joined = [token for text in texts for token in text]
    if len(texts) == 1:
        assert repetition(joined, n) == pytest.approx(1 - distinct(texts, n))


@pytest.mark.parametrize("metric", [ngram_entropy, diversity, text_metrics])
@pytest.mark.parametrize("texts", [[], [[]], ["abc"], ["abc", "xyz"]])
def test_too_short_texts(metric, texts):
    with pytest.raises(InputError, match=r"no text has [24] tokens .* longer texts"):
        metric(texts)


def test_what_is_no_ngram():
    with pytest.raises(InputError, match="no text has 3 tokens"):
        repetition("ab", 3)
    with pytest.raises(InputError, match="at least one token, not 0"):
        distinct(["ab"], 0)
