"""Run as a script: the peak memory of two training steps of a Llama, in a process of its own, as JSON.

Its argument is a JSON list of cases: `size` (the options of `make_model`), `rows` and `length` of the batch. It
measures as the benchmarks do, whose folder must be on Python's path.
"""

import json
import sys

import numpy as np
import torch
from measure import peak_memory
from transformers import LlamaConfig, LlamaForCausalLM

from sequencematch.mdp import ActionSpace, Deletion, Trajectory
from sequencematch.models import evaluate_states, layout_of, prepare_model
from sequencematch.objectives import get_divergence, sequencematch_loss
from sequencematch.tree import collate_trajectories


def make_model(hidden, intermediate, layers, heads, vocab, checkpointing):
    """An untrained Llama in float32, its embeddings tied."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=True,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def train(size, rows, length, count):
    """Make a model and train it for `count` steps on random documents; returns the model and nodes of its batch."""
    model = make_model(**size)
    prepare_model(model)
    space = ActionSpace(size["vocab"], 1, (Deletion(2, 1),))
    rng = np.random.default_rng(0)
    documents = [Trajectory([3], [*rng.integers(4, size["vocab"], length - 2), 1]) for _ in range(rows)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for _ in range(count):
        batch = collate_trajectories(documents, space, layout_of(model))
        steps = evaluate_states(model, batch, space)
        loss, _ = sequencematch_loss(steps, divergence=get_divergence("lecam"), alpha=0.01, gamma=0.998)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, batch.nodes


def peak(case):
    """Bytes of a case's two steps at their peak, with the number of parameters and nodes."""
    found = {}

    def call():
        model, nodes = train(**case, count=2)
        found.update(parameters=sum(p.numel() for p in model.parameters()), nodes=nodes)

    return {"bytes": peak_memory(call, "cpu"), **found}


def main():
    """Load whatever is loaded lazily with a small model first, then measure."""
    cases = json.loads(sys.argv[1])
    small = {"hidden": 32, "intermediate": 32, "layers": 1, "heads": 2, "vocab": 64, "checkpointing": False}
    train(small, rows=2, length=32, count=1)
    print(json.dumps([peak(case) for case in cases]))


if __name__ == "__main__":
    main()
