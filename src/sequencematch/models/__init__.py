"""Stock Hugging Face causal language models as policies of the token MDP."""

from .backspace import BACKSPACE, action_space, add_backspace_token
from .legality import mask_illegal
from .modes import evaluation_mode
from .policy import attention_masks, evaluate_states, soft_values, steps_of, tree_logits
from .support import check_fits, check_supported, max_positions, unsupported_reason

__all__ = [
    "BACKSPACE",
    "action_space",
    "add_backspace_token",
    "attention_masks",
    "check_fits",
    "check_supported",
    "evaluate_states",
    "evaluation_mode",
    "mask_illegal",
    "max_positions",
    "soft_values",
    "steps_of",
    "tree_logits",
    "unsupported_reason",
]
