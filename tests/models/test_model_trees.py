"""A packed tree through a stock model equals each path from root to node run alone."""

import pytest
import torch
import transformers
from models_reference import logits_alone, nodes, parameter_gradients, sample_walks

from sequencematch.mdp import Trajectory
from sequencematch.models import layout_of, node_logits, prepare_model, tree_logits, unsupported_reason
from sequencematch.tree import collate_trajectories

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


def batch_of(model, space, **options):
    short = [Trajectory([3], [1, 0]), Trajectory([2], [4, 0])]  # they go where other trees leave room
    return collate_trajectories([*sample_walks(space, **options), *short], space, layout_of(model))


def assert_equals_paths(model, batch, gradients=True, atol=3e-5):
    strings = dict(nodes(batch))
    assert max(map(len, strings.values())) > 6  # the windows of 3 are left
    alone = torch.stack([logits_alone(model, string) for string in strings.values()])
    assert alone.std() > 0.1
    real = torch.tensor(list(strings))
    found = node_logits(model, batch, real)
    torch.testing.assert_close(found, alone, atol=atol, rtol=1e-5)
    torch.testing.assert_close(tree_logits(model, batch)[real].float(), alone, atol=atol, rtol=1e-5)
    if gradients:
        functional = torch.randn(alone.shape, generator=torch.Generator().manual_seed(0)) / len(alone)
        one, other = (parameter_gradients(model, (functional * x).sum()) for x in (found, alone))
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)
        assert sum(gradient.abs().sum() for gradient in other) > 1


@pytest.mark.parametrize("backend", ["tiled", "dense"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_its_paths(tiny_model, space, family, attention, backend):
    model = tiny_model(family, attention)
    prepare_model(model, backend)
    batch = batch_of(model, space)
    roots = sum(len(string) == 1 for _, string in nodes(batch))
    assert 2 <= sum(rows for rows, _ in batch.tiles) < roots  # so some trees share a row and some do not
    assert_equals_paths(model, batch)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", MORE)
def test_every_model_that_passes_the_check_gives_the_right_logits(tiny_model, space, name):
    """The check may refuse a model; it must not accept one that a tree misleads."""
    config_class, options = MORE[name]
    model = tiny_model(getattr(transformers, config_class)(**{**SHARED, **options}))
    if unsupported_reason(model) is None:
        assert_equals_paths(model, batch_of(model, space), gradients=False)
    else:
        assert name.startswith(("llama4", "gpt-j"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(tiny_model, space, attention):
    model, exact = tiny_model("qwen3-mixed", attention).to(torch.bfloat16), tiny_model("qwen3-mixed", attention)
    batch = batch_of(model, space)
    logits = tree_logits(model, batch)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    real = torch.tensor([node for node, _ in nodes(batch)])
    expected = tree_logits(exact, batch)[real]
    for found in (logits[real].float(), node_logits(model, batch, real)):
        assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen3-mixed", "gpt2"])
def test_gradient_checkpointing_changes_nothing(tiny_model, space, family, attention):
    model = tiny_model(family, attention).train()
    batch = batch_of(model, space)
    for module in model.modules():
        module.p = 0.0  # no dropout: only what is computed again may show
    everywhere = torch.arange(len(batch.token))
    functional = torch.randn(len(everywhere), space.vocab_size, generator=torch.Generator().manual_seed(0))
    expected = parameter_gradients(model, (functional * node_logits(model, batch, everywhere)).sum())
    for reentrant in (False, True):
        # The newer name came after transformers 5.17.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        if not reentrant:  # torch.autograd.grad and reentrant checkpoints exclude each other
            found = parameter_gradients(model, (functional * node_logits(model, batch, everywhere)).sum())
        else:
            model.zero_grad()
            (functional * node_logits(model, batch, everywhere)).sum().backward()
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_mixed_precision_training(tiny_model, space):
    """Under autocast, forward and backward stay close to those in full precision."""
    model = tiny_model("qwen3-mixed").train()
    batch = batch_of(model, space)
    real = torch.tensor([node for node, _ in nodes(batch)])
    exact = node_logits(model, batch, real)
    expected = parameter_gradients(model, exact.square().mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = node_logits(model, batch, real)
        assert found.dtype == torch.float32
        assert (found - exact).abs().mean() < 0.02 * exact.abs().mean()
        for one, other in zip(parameter_gradients(model, found.square().mean()), expected, strict=True):
            assert (one - other).norm() <= 0.1 * other.norm() + 1e-6


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_append_then_backspace_changes_no_logits(tiny_model, space, family):
    """What was deleted leaves no trace: not in the context, not in the positions."""
    model = tiny_model(family)
    clean = [1, 2, 3, 4, 5, 0]
    noised = [1, 6, 8, 2, 3, 7, 7, 7, 9, 4, 2, 8, 5, 0]
    batch, alone = (collate_trajectories([Trajectory([4, 5], actions)], space) for actions in (noised, clean))
    logits = tree_logits(model, batch)[batch.state]
    expected = tree_logits(model, alone)[alone.state]
    right = [0, 3, 4, 9, 12, 13]
    assert [noised[t] for t in right] == clean
    torch.testing.assert_close(logits[right], expected, atol=1e-5, rtol=1e-5)
    again = {1: 3, 5: 9, 10: 12}  # before each mistake and after its deletion: the very same node
    for before, after in again.items():
        assert batch.state[before] == batch.state[after]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_long_tiles_are_run_in_blocks_of_queries(tiny_model, space, family, attention, monkeypatch):
    from sequencematch.models import attention as module

    monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    model = tiny_model(family, attention)
    assert_equals_paths(model, batch_of(model, space))


@torch.no_grad()
def test_strings_without_branches_need_no_mask(tiny_model, space):
    """One document a row is plain causal attention; a second document or a branch in the row is not."""
    from sequencematch.models.attention import tree_masks

    model = tiny_model("llama")
    walks = [Trajectory([1, 2], [3, 4, 5, 6, 0]), Trajectory([2, 1], [7, 1, 2, 0]), Trajectory([5], [3, 2, 1, 0])]
    for chosen, causal in ((walks, True), ([*walks, Trajectory([6], [], terminated=False)], False)):
        batch = collate_trajectories(chosen, space, layout_of(model))
        (tile,) = tree_masks("tiled", model.config, batch, torch.float32).tiles
        assert (tile.blocks[0][1] is None) == causal
        alone = torch.stack([logits_alone(model, string) for _, string in nodes(batch)])
        torch.testing.assert_close(tree_logits(model, batch)[[n for n, _ in nodes(batch)]], alone, atol=3e-5, rtol=1e-5)
