"""Shared fixtures: everything is made here from configs, so no test needs a network or a download."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers or datasets is imported

import pytest
from hypothesis import settings

settings.register_profile("sequencematch", deadline=None)
settings.load_profile("sequencematch")

VOCAB = 11
EOS, BKSP, TRIPLE, RESET = 0, 8, 9, 10
ALPHABET = "abcdefghijkl =+"
_DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_MIXED = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
_FAMILIES = {
    "gpt2": ("GPT2Config", {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "llama": ("LlamaConfig", _DECODER),
    "qwen3": ("Qwen3Config", {**_DECODER, "head_dim": 4}),
    "qwen3-mixed": ("Qwen3Config", {**_DECODER, "head_dim": 4, "use_sliding_window": True, **_MIXED}),
    "mistral": ("MistralConfig", {**_DECODER, "sliding_window": 3}),
    "gemma3": ("Gemma3TextConfig", {**_DECODER, "head_dim": 4, **_MIXED}),
    "phi": ("PhiConfig", _DECODER),
}


@pytest.fixture(scope="session")
def tiny_model():
    """`tiny_model(family or config, attention, seed, **config options)`: a random model in evaluation mode.

    Its logits are far from uniform, so that a wrong context shows.
    """
    import torch
    import transformers

    def make(family="llama", attention=None, seed=0, **options):
        if isinstance(family, str):
            config_class, defaults = _FAMILIES[family]
            ids = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None}
            family = getattr(transformers, config_class)(**{**ids, **defaults, **options})
        if hasattr(family, "initializer_range"):
            family.initializer_range = 0.3
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transformers.AutoModelForCausalLM.from_config(family, attn_implementation=attention).eval()

    return make


@pytest.fixture(scope="session")
def space():
    """A small action space with deletions of lengths 1, 3 and all."""
    from sequencematch.mdp import ALL, ActionSpace, Deletion

    return ActionSpace(VOCAB, EOS, (Deletion(BKSP, 1), Deletion(TRIPLE, 3), Deletion(RESET, ALL)))


@pytest.fixture
def tokenizer():
    """A new tokenizer with a token for each character of `abcdefghijkl =+`."""
    from sequencematch.tasks import build_tokenizer

    return build_tokenizer(ALPHABET)


@pytest.fixture(scope="session")
def legal_walk():
    """`legal_walk(wishes, space, terminated)`: the actions among `wishes` that are legal where they come up, as a list.

    `<eos>` is dropped on the way, and added at the end of a terminated walk.
    """

    def make(wishes, space, terminated=True):
        actions, length = [], 0
        for wish in wishes:
            if wish != space.eos_token_id and space.is_legal(wish, length):
                actions.append(wish)
                length = space.next_length(wish, length)
        return [*actions, space.eos_token_id] if terminated else actions

    return make
