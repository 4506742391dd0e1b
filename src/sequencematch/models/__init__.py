"""Stock Hugging Face causal language models as policies of the token MDP."""

from .attention import TreeAttention
from .backspace import BACKSPACE, action_space, add_backspace_token
from .head import LogitTransform, head_logits, head_values, head_values_reference
from .legality import mask_illegal
from .modes import evaluation_mode
from .policy import evaluate_states, node_logits, steps_of, tree_logits
from .prepare import layout_of, prepare_model
from .support import check_fits, check_supported, max_positions, unsupported_reason

__all__ = [
    "BACKSPACE",
    "LogitTransform",
    "TreeAttention",
    "action_space",
    "add_backspace_token",
    "check_fits",
    "check_supported",
    "evaluate_states",
    "evaluation_mode",
    "head_logits",
    "head_values",
    "head_values_reference",
    "layout_of",
    "mask_illegal",
    "max_positions",
    "node_logits",
    "prepare_model",
    "steps_of",
    "tree_logits",
    "unsupported_reason",
]
