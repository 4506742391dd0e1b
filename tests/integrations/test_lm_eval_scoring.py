"""Scores of given texts, against their definition."""

import math

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval_models import reference

from sequencematch.errors import InputError
from sequencematch.integrations.scoring import Continuation, batches, score, score_all


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("mass", ["excluded", "included"])
def test_a_score_is_the_sum_of_log_probabilities(tiny_model, space, family, mass):
    model = tiny_model(family)
    texts = [
        Continuation([3, 4], [5, 6, 7]),
        Continuation([3, 4], [5, 6, 2, 1]),
        Continuation([3, 4], [5, 0, 6]),  # <eos> within a text is a token like any other
        Continuation([7], [2]),
        Continuation([3, 4, 5, 6], [5, 6, 7], written=2),
        Continuation([3, 4, 5], [5, 6, 7], written=3),
    ]
    found = score(model, texts, space, mass)
    for text, (log_prob, best) in zip(texts, found, strict=True):
        expected = reference(model, space, text.context, text.tokens, mass == "excluded", text.written)
        assert (log_prob, best) == (pytest.approx(expected[0], abs=1e-4), expected[1])


def test_the_two_masses_differ_by_the_deletions(tiny_model, space):
    model, text = tiny_model(), [Continuation([3, 4], [5, 6, 7])]
    (excluded, _), (included, _) = score(model, text, space)[0], score(model, text, space, "included")[0]
    assert excluded > included + 1e-3
    single = [Continuation([3, 4], [5])]  # nothing can be deleted yet
    assert score(model, single, space)[0][0] == pytest.approx(score(model, single, space, "included")[0][0], abs=1e-5)


def test_a_deletion_token_is_no_text(tiny_model, space):
    assert score(tiny_model(), [Continuation([3], [4, space.deletions[0].token_id])], space)[0] == (-math.inf, False)
    with pytest.raises(InputError, match="out of range"):
        score(tiny_model(), [Continuation([3], [99])], space)
    with pytest.raises(InputError, match="at least one token"):
        Continuation([3], [])


def test_greedy_continuations_are_found(tiny_model, space):
    model, tokens = tiny_model(), []
    for _ in range(4):
        logits = model(input_ids=torch.tensor([[3, 4, *tokens]])).logits[0, -1]
        logits[[each.token_id for each in space.deletions]] = -torch.inf
        tokens.append(logits.argmax().item())
    texts = [Continuation([3, 4], tokens), Continuation([3, 4], [*tokens[:-1], (tokens[-1] + 1) % 8])]
    assert [best for _, best in score(model, texts, space)] == [True, False]


def test_batches_hold_every_text_once_and_share_contexts(tiny_model, space):
    contexts = [[3, 4, 5, 6, 7, 2], [5], [3, 4, 5, 6, 7, 2], [5], [3, 4, 5, 6, 7, 2], [1, 2]]
    texts = [Continuation(context, [index + 1, 2]) for index, context in enumerate(contexts)]
    assert list(batches(texts, 1)) == [[0, 2, 4], [5], [1], [3]]
    assert list(batches(texts, 3)) == [[0, 2, 4, 5, 1], [3]]
    assert [len(batch) for batch in batches([Continuation([1, 2, 3, 4], [5, 6])] * 5, 1)] == [2, 2, 1]
    together = {
        index: answer
        for found in score_all(tiny_model(), texts, space, "excluded", 3)
        for index, answer in found.items()
    }
    for index, text in enumerate(texts):
        assert together[index][0] == pytest.approx(score(tiny_model(), [text], space)[0][0], abs=1e-5)
