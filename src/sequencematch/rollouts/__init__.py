"""Generation inside the token MDP: sampling with deletions, and the buffer that keeps what was sampled."""

from .buffer import ReplayBuffer
from .cache import SlotCache
from .distribution import draw_actions, next_action_logits
from .engine import HFRolloutEngine
from .events import Append, Delete, End, Event
from .generate import BackspaceOutput, backspace_generate
from .live import RetractingTextStreamer
from .loading import load_engine
from .result import ENGINES, FinishReason, Rollout, RolloutEngine, uninterrupted
from .sampling import Retry, SamplingConfig
from .streaming import TextChange, TextStream

__all__ = [
    "ENGINES",
    "Append",
    "BackspaceOutput",
    "Delete",
    "End",
    "Event",
    "FinishReason",
    "HFRolloutEngine",
    "ReplayBuffer",
    "RetractingTextStreamer",
    "Retry",
    "Rollout",
    "RolloutEngine",
    "SamplingConfig",
    "SlotCache",
    "TextChange",
    "TextStream",
    "backspace_generate",
    "draw_actions",
    "load_engine",
    "next_action_logits",
    "uninterrupted",
]
