"""A packed tree through a stock model equals each path from root to node run alone."""

import pytest
import torch
import transformers
from models_reference import logits_alone, nodes, parameter_gradients, sample_walks

from sequencematch.mdp import Trajectory
from sequencematch.models import check_supported, tree_logits, unsupported_reason
from sequencematch.tree import build_trees, collate_trees

FAMILIES = ["gpt2", "llama", "qwen3", "qwen3-mixed", "mistral", "gemma3"]
SHARED = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
MIXED = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MORE = {
    "all layers sliding": (
        "Qwen3Config",
        {"head_dim": 4, "use_sliding_window": True, **MIXED, "layer_types": ["sliding_attention"] * 2},
    ),
    "all layers full": ("Gemma3TextConfig", {"head_dim": 4, **MIXED, "layer_types": ["full_attention"] * 2}),
    "cohere2": ("Cohere2Config", {**MIXED, "logit_scale": 1.0}),
    "olmo2": ("Olmo2Config", {}),
    "phi3": ("Phi3Config", {"sliding_window": 3}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 3}),
    "gpt-oss": (
        "GptOssConfig",
        {"head_dim": 4, **EXPERTS, **MIXED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "mixtral": ("MixtralConfig", {**EXPERTS, "sliding_window": 3}),
    "llama4 in chunks": (
        "Llama4TextConfig",
        {
            "head_dim": 4,
            "intermediate_size_mlp": 24,
            **EXPERTS,
            "attn_temperature_tuning": False,
            "attention_chunk_size": 3,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {"head_dim": 4, "intermediate_size_mlp": 24, **EXPERTS, "attn_temperature_tuning": True},
    ),
    "gpt-j": ("GPTJConfig", {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.3}),
}


def batch_of(space, **options):
    return collate_trees(build_trees(sample_walks(space, **options), space))


def assert_equals_paths(model, batch, gradients=True, atol=3e-5):
    logits = tree_logits(model, batch, model.config).flatten(0, 1)
    strings = dict(nodes(batch))
    assert max(map(len, strings.values())) > 6  # the windows of 3 are left
    alone = torch.stack([logits_alone(model, string) for string in strings.values()])
    assert alone.std() > 0.1
    found = logits[list(strings)]
    torch.testing.assert_close(found, alone, atol=atol, rtol=1e-5)
    if gradients:
        functional = torch.randn(alone.shape, generator=torch.Generator().manual_seed(0)) / len(alone)
        one, other = (parameter_gradients(model, (functional * x).sum()) for x in (found, alone))
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)
        assert sum(gradient.abs().sum() for gradient in other) > 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_its_paths(tiny_model, space, family, attention):
    model = tiny_model(family, attention)
    check_supported(model)
    batch = batch_of(space)
    assert 2 <= len(batch.token) < 4  # four trees, so some share a row and some do not
    assert_equals_paths(model, batch)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", MORE)
def test_every_model_that_passes_the_check_gives_the_right_logits(tiny_model, space, name):
    """The check may refuse a model; it must not accept one that a tree misleads."""
    config_class, options = MORE[name]
    model = tiny_model(getattr(transformers, config_class)(**{**SHARED, **options}))
    if unsupported_reason(model) is None:
        assert_equals_paths(model, batch_of(space), gradients=False)
    else:
        assert name.startswith(("llama4", "gpt-j"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(tiny_model, space, attention):
    model = tiny_model("qwen3-mixed", attention).to(torch.bfloat16)
    batch = batch_of(space)
    logits = tree_logits(model, batch, model.config)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    exact = tree_logits(tiny_model("qwen3-mixed", attention), batch, model.config).flatten(0, 1)
    real = [node for node, _ in nodes(batch)]
    error = logits.flatten(0, 1)[real].float() - exact[real]
    assert error.abs().mean() < 0.02 * exact[real].abs().mean()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_append_then_backspace_changes_no_logits(tiny_model, space, family):
    """What was deleted leaves no trace: not in the context, not in the positions."""
    model = tiny_model(family)
    clean = [1, 2, 3, 4, 5, 0]
    noised = [1, 6, 8, 2, 3, 7, 7, 7, 9, 4, 2, 8, 5, 0]
    batch = collate_trees(build_trees([Trajectory([4, 5], noised)], space))
    alone = collate_trees(build_trees([Trajectory([4, 5], clean)], space))
    logits = tree_logits(model, batch, model.config).flatten(0, 1)[batch.state]
    expected = tree_logits(model, alone, model.config).flatten(0, 1)[alone.state]
    right = [0, 3, 4, 9, 12, 13]
    assert [noised[t] for t in right] == clean
    torch.testing.assert_close(logits[right], expected, atol=1e-5, rtol=1e-5)
    again = {1: 3, 5: 9, 10: 12}  # before each mistake and after its deletion: the very same node
    for before, after in again.items():
        assert batch.state[before] == batch.state[after]
