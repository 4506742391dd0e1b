"""Generation inside the token MDP: sampling with deletions, and the buffer that keeps what was sampled."""

from .buffer import ReplayBuffer
from .cache import SlotCache
from .distribution import draw_actions, next_action_logits
from .engine import HFRolloutEngine
from .events import Append, Delete, End, Event
from .result import FinishReason, Rollout, RolloutEngine, uninterrupted
from .sampling import Retry, SamplingConfig

__all__ = [
    "Append",
    "Delete",
    "End",
    "Event",
    "FinishReason",
    "HFRolloutEngine",
    "ReplayBuffer",
    "Retry",
    "Rollout",
    "RolloutEngine",
    "SamplingConfig",
    "SlotCache",
    "draw_actions",
    "next_action_logits",
    "uninterrupted",
]
