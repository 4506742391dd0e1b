"""Rolling a row back equals a fresh forward pass on the string that is left."""

import numpy as np
import pytest
import torch
from rollout_models import CONFIGS, VOCAB, fresh_logits, tiny_model

from sequencematch.rollouts import SlotCache


def feed(model, cache, tokens, slots):
    """Logits [R, Q, V] of tokens [R, Q] at slots [R, Q]."""
    cache.place(torch.tensor(slots))
    return model(
        input_ids=torch.tensor(tokens),
        attention_mask=cache.attention_mask(),
        position_ids=torch.tensor(slots),
        past_key_values=cache,
        use_cache=True,
    ).logits


def assert_fresh(model, logits, strings):
    for row, string in enumerate(strings):
        torch.testing.assert_close(logits[row, -1], fresh_logits(model, tuple(string)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_random_walks_see_exactly_their_strings(name, attention):
    model = tiny_model(name, attention)
    random = np.random.default_rng(1)
    strings = [random.integers(0, VOCAB, size=n).tolist() for n in (2, 7, 4)]
    prompts = [len(string) for string in strings]
    cache = SlotCache(model.config, 30)
    width = max(prompts)
    padded = [string + [0] * (width - len(string)) for string in strings]
    logits = feed(model, cache, padded, [list(range(width))] * 3)
    for row, string in enumerate(strings):
        torch.testing.assert_close(logits[row, len(string) - 1], fresh_logits(model, tuple(string)), atol=2e-5, rtol=0)
    for _ in range(40):
        for string, prompt in zip(strings, prompts, strict=True):
            free = len(string) - prompt
            if free and (len(string) == 30 or random.random() < 0.4):
                del string[len(string) - int(random.integers(1, free + 1)) :]
            else:
                string.append(int(random.integers(0, VOCAB)))
        last = [[string[-1]] for string in strings]
        assert_fresh(model, feed(model, cache, last, [[len(string) - 1] for string in strings]), strings)


@torch.no_grad()
def test_keep_drops_and_reorders_rows():
    model = tiny_model()
    strings = [[1, 2, 3], [4, 5, 6], [7, 1, 2]]
    cache = SlotCache(model.config, 8)
    feed(model, cache, strings, [[0, 1, 2]] * 3)
    cache.keep(torch.tensor([2, 0]))
    kept = [[7, 1, 2, 5], [1, 2, 3, 6]]
    assert_fresh(model, feed(model, cache, [[5], [6]], [[3], [3]]), kept)


@torch.no_grad()
def test_feeding_a_token_again_changes_nothing():
    model = tiny_model("mistral")
    cache = SlotCache(model.config, 8)
    first = feed(model, cache, [[1, 2, 3, 4, 5, 6]], [[0, 1, 2, 3, 4, 5]])
    again = feed(model, cache, [[6]], [[5]])
    torch.testing.assert_close(first[:, -1], again[:, -1], atol=1e-5, rtol=0)


def test_the_cache_tells_its_sizes():
    model = tiny_model()
    cache = SlotCache(model.config, 8)
    assert cache.get_seq_length() == 0
    assert cache.get_max_length() == 8
    feed(model, cache, [[1, 2, 3]], [[0, 1, 2]])
    assert cache.get_seq_length() == 3
    assert cache.get_mask_sizes(1, 0) == (3, 0)
