"""Generation inside the token MDP: sampling with deletions, and the buffer that keeps what was sampled."""

from .buffer import ReplayBuffer
from .cache import SlotCache
from .engine import FinishReason, HFRolloutEngine, OnAction, Rollout, RolloutEngine
from .sampling import Retry, SamplingConfig, draw_actions, next_action_logits

__all__ = [
    "FinishReason",
    "HFRolloutEngine",
    "OnAction",
    "ReplayBuffer",
    "Retry",
    "Rollout",
    "RolloutEngine",
    "SamplingConfig",
    "SlotCache",
    "draw_actions",
    "next_action_logits",
]
