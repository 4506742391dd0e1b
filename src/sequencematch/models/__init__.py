"""Stock Hugging Face causal language models as policies of the token MDP."""

from .adapters import add_adapters, check_trainable, has_adapters, save_adapters
from .attention import TreeAttention
from .backspace import BACKSPACE, action_space, add_backspace_token
from .gathered import whole_weights
from .head import LogitTransform, head_logits, head_values, head_values_reference
from .legality import mask_illegal
from .loading import load_model, load_tokenizer, require_bitsandbytes
from .merged import save_merged
from .modes import evaluation_mode
from .policy import evaluate_states, node_logits, steps_of, tree_logits
from .prepare import layout_of, prepare_model
from .support import check_fits, check_supported, max_positions, unsupported_reason

__all__ = [
    "BACKSPACE",
    "LogitTransform",
    "TreeAttention",
    "action_space",
    "add_adapters",
    "add_backspace_token",
    "check_fits",
    "check_supported",
    "check_trainable",
    "evaluate_states",
    "evaluation_mode",
    "has_adapters",
    "head_logits",
    "head_values",
    "head_values_reference",
    "layout_of",
    "load_model",
    "load_tokenizer",
    "mask_illegal",
    "max_positions",
    "node_logits",
    "prepare_model",
    "require_bitsandbytes",
    "save_adapters",
    "save_merged",
    "steps_of",
    "tree_logits",
    "unsupported_reason",
    "whole_weights",
]
