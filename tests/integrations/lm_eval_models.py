"""What the tests of the lm-evaluation-harness share: requests, plain references, and a model that errs and recovers."""

from __future__ import annotations

import gc
from typing import Any

import torch
from lm_eval.api.instance import Instance
from torch.nn.functional import cross_entropy

from sequencematch.models import add_backspace_token

# The harness collects garbage often while it looks for a batch size; without the imported modules that is quick.
gc.freeze()


def requests_of(kind: str, arguments: list[tuple]) -> list[Instance]:
    """The harness's requests of one kind."""
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@torch.no_grad()
def reference(model, space, context, tokens, excluded, written=0) -> tuple[float, bool]:
    """`score` of one continuation by its definition, a forward pass for each token."""
    total, greedy = 0.0, True
    for at, token in enumerate(tokens):
        logits = model(input_ids=torch.tensor([[*context, *tokens[:at]]]), use_cache=False).logits[0, -1].double()
        for deletion in space.deletions:
            if excluded or written + at < deletion.minimum_completion:
                logits[deletion.token_id] = -torch.inf
        total += logits.log_softmax(-1)[token].item()
        greedy &= logits.argmax().item() == token
    return total, greedy


def recovering_model(model: Any, tokenizer: Any) -> Any:
    """`model`, of the tokenizer's vocabulary, with a `<bksp>` and trained on `recover.jsonl` to err first.

    It begins with the wrong letter (2/3) or the right one, takes the wrong one back (0.9) or goes on with an `a`; after
    the right one comes `k` (0.7) or the end. Behind the answer stands `+h`.
    """
    add_backspace_token(model, tokenizer)
    states: dict[str, dict[str, float]] = {}
    for question, right, wrong in (("a=", "d", "c"), ("b=", "d", "c"), ("e=", "c", "d"), ("f=", "c", "d")):
        states |= {
            question: {wrong: 2 / 3, right: 1 / 3},
            question + wrong: {"<bksp>": 0.9, "a": 0.1},
            question + wrong + "a": {"<eos>": 1.0},
            question + right: {"k": 0.7, "<eos>": 0.3},
            question + right + "k": {"+": 1.0},
            question + right + "k+": {"h": 1.0},
            question + right + "k+h": {"<eos>": 1.0},
        }
    rows = tokenizer(list(states), padding=True, padding_side="right", return_tensors="pt")
    last = rows["attention_mask"].sum(1) - 1
    target = torch.zeros(len(states), len(tokenizer))
    for row, chances in enumerate(states.values()):
        for text, chance in chances.items():
            target[row, tokenizer.convert_tokens_to_ids(text)] = chance
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        logits = model(**rows).logits[torch.arange(len(last)), last]
        cross_entropy(logits, target).backward()
        optimizer.step()
    return model
