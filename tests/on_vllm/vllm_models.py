"""Models small enough to enumerate, of the shapes that vLLM runs on a CPU."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ON_CPU = {"dtype": "float32", "enforce_eager": True, "block_size": 32}
"""Arguments of vLLM's engine; heads are of 32."""


def saved_model(folder, vocab=5, seed=0, positions=64):
    """A random Llama, and its folder."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model
