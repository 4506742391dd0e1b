"""Tiny random models from configs, and plain references to check the fast paths against."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from sequencematch.mdp import ALL, ActionSpace, Deletion, states

VOCAB = 11
EOS, BKSP, BKSP2, RESET = 0, 8, 9, 10
SPACE = ActionSpace(VOCAB, EOS, (Deletion(BKSP, 1), Deletion(BKSP2, 2), Deletion(RESET, ALL)))
SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "llama": lambda: LlamaConfig(**SHARED),
    "qwen3": lambda: Qwen3Config(**SHARED, head_dim=4),
    "qwen3-mixed": lambda: Qwen3Config(
        **SHARED, head_dim=4, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "mistral": lambda: MistralConfig(**SHARED, sliding_window=4),
    "gemma3": lambda: Gemma3TextConfig(
        **SHARED,
        head_dim=4,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=5.0,
        tie_word_embeddings=False,
    ),
}


def tiny_model(name: str = "llama", attention: str = "sdpa", sharpness: float = 4.0) -> PreTrainedModel:
    """A random model in evaluation mode whose next-action distributions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIGS[name]()
        config.initializer_range = 0.3
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, EOS, None
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output * sharpness / 4)
    return model.eval()


def favour(model: PreTrainedModel, token: int, bias: float = 50.0) -> PreTrainedModel:
    """Make `model` prefer one action everywhere."""
    bonus = torch.zeros(model.config.vocab_size)
    bonus[token] = bias
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output + bonus)
    return model


@torch.no_grad()
def fresh_logits(model: PreTrainedModel, string: tuple[int, ...]) -> torch.Tensor:
    """float [V]: the logits of a forward pass on this string alone, without a cache."""
    return model(input_ids=torch.tensor([string]), use_cache=False).logits[0, -1]


def legal_log_probs(model: PreTrainedModel, string: tuple[int, ...], length: int, space: ActionSpace) -> torch.Tensor:
    """float [V]: log pi(.|s), by the definition."""
    logits = fresh_logits(model, string)[: space.vocab_size].clone()
    for action in range(space.vocab_size):
        if not space.is_legal(action, length):
            logits[action] = -torch.inf
    return logits.log_softmax(-1)


def reference_log_probs(model: PreTrainedModel, trajectory, space: ActionSpace) -> list[float]:
    """log pi(a_t|s_t) of every action, each from a forward pass of its own."""
    prompt = len(trajectory.prompt_ids)
    return [
        legal_log_probs(model, string, len(string) - prompt, space)[action].item()
        for string, action in zip(states(trajectory, space), trajectory.actions.tolist(), strict=False)
    ]
