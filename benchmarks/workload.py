"""What the benchmarks run: model sizes, documents and trajectories. Everything is random and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sequencematch.mdp import ActionSpace, Deletion, Trajectory

EOS, BACKSPACE, START, FIRST_TEXT = 1, 2, 3, 4
"""Token ids; text is made of the ids from `FIRST_TEXT` on."""


@dataclass(frozen=True)
class Size:
    """A model's shape and a batch's. `row` is the length of a full document, `rows` how many are in a batch."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    dtype: str
    rows: int
    row: int
    prompts: int
    prompt: int
    rollout: int
    rollouts: int = 8

    def config(self) -> LlamaConfig:
        """The Llama config, embeddings tied."""
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=max(self.row, self.prompt + self.rollout) + 1,
            tie_word_embeddings=True,
            bos_token_id=START,
            eos_token_id=EOS,
            pad_token_id=0,
            dtype=getattr(torch, self.dtype),
        )

    def model(self, device: str) -> LlamaForCausalLM:
        """A model with random weights, in training mode."""
        torch.manual_seed(0)
        model = LlamaForCausalLM(self.config()).to(device=device, dtype=getattr(torch, self.dtype))
        return model.train()

    @property
    def space(self) -> ActionSpace:
        """The paper's actions: append, end, and one backspace that deletes one token."""
        return ActionSpace(self.vocab, EOS, (Deletion(BACKSPACE, 1),))

    @property
    def plain_space(self) -> ActionSpace:
        """The actions of a model that cannot delete."""
        return ActionSpace(self.vocab, EOS)


SIZES = {
    "tiny": Size("tiny", 128, 256, 2, 4, 4, 4096, "float32", 4, 128, prompts=2, prompt=64, rollout=16),
    "cpu": Size("cpu", 384, 1024, 10, 6, 6, 32_768, "float32", 4, 512, prompts=2, prompt=256, rollout=64),
    "gpu": Size("gpu", 2048, 8192, 16, 32, 8, 128_256, "bfloat16", 2, 4096, prompts=4, prompt=256, rollout=64),
}


def chosen_size(name: str | None, device: str, rows: int | None = None) -> Size:
    """The size named, or the one meant for the device; `rows` overrides its documents per batch."""
    size = SIZES[name or ("gpu" if device == "cuda" else "cpu")]
    return replace(size, rows=rows or size.rows)


def document(length: int, vocab: int, rng: np.random.Generator) -> np.ndarray:
    """A text of `length` tokens: a start token, random text, and the end token. int64 [length]."""
    return np.concatenate([[START], text(length - 2, vocab, rng), [EOS]])


def text(length: int, vocab: int, rng: np.random.Generator) -> np.ndarray:
    """Random tokens, none of them special: int64 [length]."""
    return rng.integers(FIRST_TEXT, vocab, length)


def expert(tokens: np.ndarray, prompt_length: int = 1) -> Trajectory:
    """A document as a demonstration without mistakes: the tokens after the prompt are its actions."""
    return Trajectory(tokens[:prompt_length], tokens[prompt_length:])


def with_mistakes(tokens: np.ndarray, share: float, vocab: int, rng: np.random.Generator) -> Trajectory:
    """The whole document, with so many wrong tokens taken back at once that `share` of all actions are backspaces."""
    actions = tokens[1:]
    pairs = round(len(actions) * share / (1 - 2 * share))
    wrong = np.stack([text(pairs, vocab, rng), np.full(pairs, BACKSPACE)], 1).ravel()
    before = np.sort(rng.integers(len(actions), size=pairs))
    return Trajectory(tokens[:1], np.insert(actions, np.repeat(before, 2), wrong))


def mistaken(count: int, actions: int, share: float, vocab: int, rng: np.random.Generator) -> list[Trajectory]:
    """Demonstrations of about `actions` actions each, `share` of them backspaces, each after a wrong token."""
    length = 1 + round(actions * (1 - 2 * share))
    return [with_mistakes(document(length, vocab, rng), share, vocab, rng) for _ in range(count)]


def walks(documents: Sequence[np.ndarray], vocab: int, rng: np.random.Generator) -> list[Trajectory]:
    """Rollouts of the policy as long as the documents, from their start tokens: random walks cut by a length limit."""
    return [
        Trajectory(d[:1], text(len(d) - 1, vocab, rng), terminated=False, source="policy", policy_version=0)
        for d in documents
    ]


def shared_prompts(size: Size, rng: np.random.Generator) -> list[Trajectory]:
    """`rollouts` completions of each of `prompts` prompts, without deletions, each ended."""
    found = []
    for _ in range(size.prompts):
        prompt = np.concatenate([[START], text(size.prompt - 1, size.vocab, rng)])
        for _ in range(size.rollouts):
            found.append(Trajectory(prompt, np.append(text(size.rollout - 1, size.vocab, rng), EOS)))
    return found


def actions_of(trajectories: Sequence[Trajectory]) -> int:
    """How many actions there are in all."""
    return sum(len(trajectory) for trajectory in trajectories)
