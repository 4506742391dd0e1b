"""A study so small that it takes seconds."""

import copy

TINY = {
    "title": "Tiny stars",
    "description": "Two arms.",
    "budget": {"steps": 3},
    "options": {
        "task": "star",
        "task_options": {"degree": 2, "length": [1, 2], "nodes": 8},
        "train_size": 64,
        "test_size": 12,
        "from_scratch": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                         "num_attention_heads": 2, "max_position_embeddings": 32},
        "deletions": {"<reset>": "all"},
        "noise_source": "task",
        "noise_rate": 0.5,
        "per_device_train_batch_size": 8,
        "max_completion_length": 4,
        "max_actions": 12,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    },
    "arms": {"mle": {"objective": "mle", "noise_source": "none", "deletions": {}}, "bc": {"objective": "bc"}},
    "seeds": [0, 1],
    "decoding": {"sampled": {"temperature": 1.0}, "greedy": {"temperature": 0}},
    "evaluation": {"transcripts": 3},
}  # fmt: skip


def tiny(**changes):
    """The study's mapping with other entries; None takes one out."""
    found = copy.deepcopy(TINY) | changes
    return {key: value for key, value in found.items() if value is not None}
