"""Rolling a row back equals a fresh forward pass on the string that is left."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from rollout_models import CONFIGS, SPACE, VOCAB, fresh_logits, tiny_model

from sequencematch.errors import InputError
from sequencematch.models.prepare import extend_forward, planned_attention
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig, SlotCache
from sequencematch.rollouts.cache import StepMask
from sequencematch.rollouts.decoder import Decoder


@contextmanager
def decoding(model, rows, capacity):
    """A decoder in the state in which the engine uses it."""
    extend_forward(model)
    with torch.no_grad(), planned_attention(model):
        yield Decoder(model, VOCAB, rows, capacity)


def step(decoder, strings):
    return decoder.step([string[-1] for string in strings], [len(string) - 1 for string in strings])


def assert_fresh(model, logits, strings):
    for row, string in zip(logits, strings, strict=True):
        torch.testing.assert_close(row, fresh_logits(model, tuple(string)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_walks_see_exactly_their_strings(name, attention):
    """Appends and deletions of any length, and states that are come back to without a forward pass."""
    model, reference = tiny_model(name, attention), tiny_model(name, attention)
    random = np.random.default_rng(1)
    strings = [random.integers(0, VOCAB, size=n).tolist() for n in (2, 7, 4)]
    prompts = [len(string) for string in strings]
    with decoding(model, 3, 30) as decoder:
        decoder.prefill(strings, [0, 1, 2])
        assert_fresh(reference, step(decoder, strings), strings)
        for _ in range(40):
            for row, (string, prompt) in enumerate(zip(strings, prompts, strict=True)):
                free = len(string) - prompt
                if free and (len(string) == 30 or random.random() < 0.4):
                    del string[len(string) - int(random.integers(1, free + 1)) :]
                    assert_fresh(reference, decoder.again([row], [len(string) - 1]), [string])
                string.append(int(random.integers(0, VOCAB)))
            assert_fresh(reference, step(decoder, strings), strings)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_rows_are_dropped_reordered_and_copied(name):
    model, reference = tiny_model(name), tiny_model(name)
    strings = [[1, 2, 3], [4, 5, 6, 1, 2, 3, 4], [7, 1, 2]]
    with decoding(model, 3, 12) as decoder:
        decoder.prefill(strings, [0, 1, 2])
        step(decoder, strings)
        decoder.keep([2, 1])
        kept = [[7, 1, 2, 5], [4, 5, 6, 1, 2, 3, 4, 6]]
        assert_fresh(reference, step(decoder, kept), kept)
        assert_fresh(reference, decoder.again([1], [6]), [kept[1][:7]])
        decoder.copy(1, [0], 6)
        both = [[4, 5, 6, 1, 2, 3, 1], kept[1]]
        assert_fresh(reference, step(decoder, both), both)


def test_a_prompt_is_filled_without_padding_in_forwards_of_bounded_size(monkeypatch):
    monkeypatch.setattr("sequencematch.rollouts.decoder.PREFILL_TOKENS", 12)
    model, reference = tiny_model(), tiny_model()
    sizes = []
    forward = Decoder._forward
    monkeypatch.setattr(
        Decoder, "_forward", lambda self, tokens, *a: sizes.append(len(tokens)) or forward(self, tokens, *a)
    )
    random = np.random.default_rng(0)
    strings = [random.integers(0, VOCAB, size=n).tolist() for n in (5, 1, 20, 5, 2, 9)]
    with decoding(model, 6, 21) as decoder:
        decoder.prefill(strings, range(6))
        assert sum(sizes) == sum(len(string) - 1 for string in strings)
        assert sizes == [9, 8, 19]
        assert_fresh(reference, step(decoder, strings), strings)


@torch.no_grad()
def test_feeding_a_token_again_changes_nothing():
    model = tiny_model("mistral")
    with decoding(model, 1, 8) as decoder:
        decoder.prefill([[1, 2, 3, 4, 5, 6]], [0])
        first = decoder.step([6], [5]).clone()
        torch.testing.assert_close(first, decoder.step([6], [5]), atol=1e-6, rtol=0)


def test_the_cache_tells_its_sizes():
    cache = SlotCache(tiny_model().config, rows=2, capacity=8)
    assert cache.get_seq_length() == 0
    assert cache.get_max_length() == 8
    cache.place(torch.tensor([0, 1]), torch.tensor([2, 3]), 4)
    keys = torch.randn(1, 2, 2, 4)
    found, _ = cache.update(keys, keys, 0)
    assert found.shape == (2, 2, 4, 4)
    assert torch.equal(found[1, :, 3], keys[0, :, 1])
    assert cache.get_seq_length() == 4
    assert cache.get_mask_sizes(1, 0) == (4, 0)
    cache.place(torch.tensor([1, 1]), torch.tensor([0, 1]), None)
    assert cache.update(keys, keys, 0)[0] is keys
    assert torch.equal(cache.slot_layers[0].keys[1, :, 1], keys[0, :, 1])


def test_a_model_that_sees_something_else_after_deletions_is_refused_by_name(monkeypatch):
    attend = StepMask.attend
    monkeypatch.setattr(StepMask, "attend", lambda self, *a, **k: attend(StepMask(0 * self.seen), *a, **k))
    model = tiny_model("qwen3")
    engine = HFRolloutEngine(model, SPACE)
    with pytest.raises(InputError, match="family 'qwen3' are not supported: after deletions it differs"):
        engine.rollout([[1]], SamplingConfig(max_completion_length=4))
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.undo()
    assert engine.rollout([[1]], SamplingConfig(max_completion_length=4))
