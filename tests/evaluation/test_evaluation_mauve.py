import random
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from sequencematch import InputError
from sequencematch.evaluation.mauve import equal_lengths, featurize, mauve_score

IDS = [[1, 2, 3, 4, 5], [6], [7, 7, 1], [1, 2, 3, 4], [5, 0, 0], [2, 2]]


@pytest.fixture(scope="module")
def gaussians():
    """`gaussians(shift, seed)`: features of 300 texts, float [300, 8]."""

    def draw(shift=0.0, seed=0):
        features = np.random.default_rng(seed).normal(size=(300, 8)) + 0.5
        features[:, 0] += shift
        return features

    return draw


def test_cutting_to_one_length():
    found = equal_lengths([[1, 2, 3], [4, 5], [6, 7]], [np.array([8, 9, 1, 2]), (3,)], 2)
    assert found.generated == [[1, 2], [4, 5], [6, 7]]
    assert found.reference == [[8, 9]]
    assert (found.dropped_generated, found.dropped_reference) == (0, 1)


@pytest.mark.parametrize(
    ("generated", "reference", "length", "message"),
    [
        ([[1, 2]], [[1, 2, 3]], 3, "no text on one side has 3 tokens; choose a length of at most 2"),
        ([[1, 2]], [[1]], 2, "at most 1"),
        ([], [[1]], 1, "at most 0"),
        ([[1]], [[1]], 0, "at least one token, not 0"),
    ],
)
def test_what_cannot_be_cut(generated, reference, length, message):
    with pytest.raises(InputError, match=message):
        equal_lengths(generated, reference, length)


@torch.no_grad()
def features_alone(model, ids):
    """The last hidden state that the model itself gives out for each text in a forward of its own."""
    return np.stack(
        [model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1] for row in ids]
    )


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma3"])
def test_features_are_those_of_each_text_alone(tiny_model, family, batch_size):
    model = tiny_model(family)
    found = featurize(IDS, model, batch_size=batch_size)
    assert (found.shape, found.dtype) == ((6, 16), np.float32)
    np.testing.assert_allclose(found, features_alone(model, IDS), atol=1e-5, rtol=1e-5)


def test_features_of_a_bare_backbone_and_of_an_encoder(tiny_model):
    from transformers import BertConfig, BertModel

    model = tiny_model("gpt2")
    np.testing.assert_array_equal(featurize(IDS, model.transformer), featurize(IDS, model))
    config = BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, is_decoder=False
    )
    encoder = BertModel(config).eval()
    np.testing.assert_allclose(featurize(IDS, encoder), features_alone(encoder, IDS), atol=1e-5)


def test_features_under_adapters(tiny_model):
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    plain = featurize(IDS, model)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    found = featurize(IDS, adapted)
    np.testing.assert_allclose(found, features_alone(adapted, IDS), atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3


def test_strings_are_tokenized(tiny_model, tokenizer):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    texts = ["abc", "a", "lk = a+b"]
    np.testing.assert_array_equal(featurize(texts, model, tokenizer), featurize(tokenizer(texts)["input_ids"], model))


def test_longer_texts_are_cut(tiny_model, tokenizer):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    cut = featurize([row[:3] for row in IDS], model)
    np.testing.assert_allclose(featurize(IDS, model, max_length=3), cut, atol=1e-6)
    np.testing.assert_allclose(
        featurize(["abcd", "ab"], model, tokenizer, max_length=3), featurize(["abc", "ab"], model, tokenizer), atol=1e-6
    )


def test_evaluation_mode_is_restored(tiny_model):
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    model.transformer.h[1].eval()
    np.testing.assert_array_equal(featurize(IDS, model), featurize(IDS, model))
    assert model.training
    assert not model.transformer.h[1].training


def test_features_of_a_half_precision_model(tiny_model):
    found = featurize(IDS, tiny_model("llama").bfloat16())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, featurize(IDS, tiny_model("llama")), atol=0.2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one text"),
        ([[1], []], "every text needs a token"),
        (["a"], "need the model's tokenizer"),
        ([[1, 11]], "not among the model's 11"),
        ([[-1]], "not among the model's 11"),
        ([[1] * 65], "65 tokens, the model 64 positions; lower max_length"),
    ],
)
def test_what_has_no_features(tiny_model, texts, message):
    with pytest.raises(InputError, match=message):
        featurize(texts, tiny_model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda features: features[:19], "at least 20 texts"),
        (lambda features: features[:, :4], "two arrays of texts by width"),
        (lambda features: features[0], "two arrays of texts by width"),
        (lambda features: np.where(np.arange(8) == 3, np.nan, features), "not finite"),
    ],
)
def test_features_that_cannot_be_compared(gaussians, change, message):
    for sides in ((gaussians(), change(gaussians())), (change(gaussians()), gaussians())):
        with pytest.raises(InputError, match=message):
            mauve_score(*sides)


def test_nothing_to_compare(gaussians):
    with pytest.raises(InputError, match="same features"):
        mauve_score(np.ones((30, 4)), np.ones((30, 4)))
    with pytest.raises(InputError, match="at least one k-means seed"):
        mauve_score(gaussians(), gaussians(), seeds=())


def test_the_package_is_missing(gaussians, monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(InputError, match=r"pip install 'sequencematch\[mauve\]'"):
        mauve_score(gaussians(), gaussians())


@pytest.fixture(scope="module")
def mauve():
    return pytest.importorskip("mauve")


def test_close_and_far(mauve, gaussians):
    scores = [mauve_score(gaussians(shift), gaussians(0, seed=1)) for shift in (0, 1, 2, 3, 6)]
    means = [found.mean for found in scores]
    assert means[0] > 0.9
    assert means[-1] < 0.1
    assert min(nearer - farther for nearer, farther in pairwise(means)) > 0.03


def test_what_a_score_says(mauve, gaussians):
    found = mauve_score(gaussians(1)[:250], gaussians(0, seed=1), seeds=(3, 8))
    assert (found.n, found.buckets) == (250, 25)
    assert found.values == tuple(
        mauve_score(gaussians(1)[:250], gaussians(0, seed=1), seeds=(seed,)).mean for seed in (3, 8)
    )
    assert found.values[0] != found.values[1]
    assert (found.low, found.high) == (min(found.values), max(found.values))
    assert found.mean == pytest.approx(sum(found.values) / 2)


def test_the_score_is_the_packages_own(mauve, gaussians):
    generated, reference = gaussians(1), gaussians(0, seed=1)
    found = mauve_score(generated, reference, seeds=(4,))
    own = mauve.compute_mauve(p_features=reference, q_features=generated, seed=4)
    assert found.values == (own.mauve,)
    assert found.buckets == own.num_buckets


def test_features_are_as_the_package_takes_them(mauve, tiny_model):
    from mauve.utils import featurize_tokens_from_model

    model = tiny_model("gpt2")
    own = featurize_tokens_from_model(model.transformer, [torch.tensor(row) for row in IDS], batch_size=4)
    np.testing.assert_allclose(featurize(IDS, model), own.numpy(), atol=1e-6)


def test_the_fewest_texts(mauve, gaussians):
    found = mauve_score(gaussians()[:20], gaussians(0, seed=1)[:20])
    assert found.buckets == 2
    assert 0 <= found.low <= found.high <= 1


def test_it_is_quiet_and_leaves_random_numbers_alone(mauve, gaussians, capfd):
    def states():
        return np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()

    before = states()
    mauve_score(gaussians(), gaussians(0, seed=1), seeds=(0,))
    assert states() == before
    print("heard", file=sys.stderr)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "heard\n")
