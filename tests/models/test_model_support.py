"""Families that a state tree would mislead are refused by name."""

import pytest
import torch
import transformers

from sequencematch.errors import InputError
from sequencematch.models import check_supported, evaluation_mode, unsupported_reason
from sequencematch.models.loading import load_model, load_tokenizer

DECODER = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
SMALL = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": 0}
MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
REFUSED = {
    "mamba": ("MambaConfig", {**SMALL, "state_size": 4}, "recurrent state"),
    "mamba2": ("Mamba2Config", {**SMALL, "num_heads": 4, "head_dim": 8, "n_groups": 1}, "recurrent state"),
    "recurrent_gemma": ("RecurrentGemmaConfig", DECODER, "recurrent state"),
    "bamba": ("BambaConfig", {**DECODER, "attn_layer_indices": [1], **MAMBA_HEADS, "mamba_n_groups": 1}, "recurrent"),
    "falcon_h1": ("FalconH1Config", {**DECODER, **MAMBA_HEADS, "mamba_d_ssm": 32}, "recurrent state"),
    "lfm2": ("Lfm2Config", {**DECODER, "layer_types": ["conv", "full_attention"]}, "recurrent state"),
    "bloom": ("BloomConfig", {"vocab_size": 11, "hidden_size": 16, "n_layer": 2, "n_head": 4}, "position ids"),
    "falcon": ("FalconConfig", {**SMALL, "num_attention_heads": 4, "alibi": True}, "position ids"),
    "gpt_neo": (
        "GPTNeoConfig",
        {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "attention interface",
    ),
    "llama": (
        "LlamaConfig",
        {**DECODER, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "sequence's length",
    ),
    "phi3": (
        "Phi3Config",
        {**DECODER, "rope_parameters": {**LONG, "rope_theta": 1e4, "original_max_position_embeddings": 32}},
        "sequence's length",
    ),
}


@pytest.mark.parametrize("family", REFUSED)
def test_refused_by_name(tiny_model, family):
    config_class, options, reason = REFUSED[family]
    model = tiny_model(getattr(transformers, config_class)(**options))
    with pytest.raises(InputError, match=rf"family '{family}' are not supported: .*{reason}"):
        check_supported(model)


def test_a_hybrid_is_refused_by_its_layers_alone(tiny_model):
    """Some hybrids do not call themselves stateful."""
    config_class, options, _ = REFUSED["lfm2"]
    model = tiny_model(getattr(transformers, config_class)(**options))
    type(model)._is_stateful, before = False, type(model)._is_stateful
    try:
        assert "recurrent state" in unsupported_reason(model)
    finally:
        type(model)._is_stateful = before


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_attention_without_masks_is_refused(tiny_model, attention):
    model = tiny_model()
    model.config._attn_implementation = attention
    with pytest.raises(InputError, match=f"attn_implementation='{attention}'.*'sdpa'"):
        check_supported(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "qwen3-mixed", "mistral", "gemma3", "phi"])
def test_supported(tiny_model, family, attention):
    assert unsupported_reason(tiny_model(family, attention)) is None


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}])
def test_fixed_rope_scaling_is_supported(tiny_model, rope):
    check_supported(tiny_model("llama", rope_parameters={"rope_theta": 1e4, **rope}))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_leaves_every_module_as_it_was_found(training):
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1)))
    model.train(training)
    model[1][0].train(not training)  # say, a part that was frozen
    modes = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_evaluation_mode_ends_after_an_error():
    model = torch.nn.Dropout()
    with pytest.raises(RuntimeError, match="boom"), evaluation_mode(model):
        raise RuntimeError("boom")
    assert model.training


def test_nothing_to_load(tmp_path):
    with pytest.raises(InputError, match=f"no model can be loaded from '{tmp_path}'"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match=f"'{tmp_path / 'none'}'"):
        load_tokenizer(str(tmp_path / "none"))
