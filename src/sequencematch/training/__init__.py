"""Training: the recipe of the paper's algorithm 1 on top of transformers' Trainer."""

from .config import SequenceMatchConfig
from .trainer import SequenceMatchTrainer

__all__ = ["SequenceMatchConfig", "SequenceMatchTrainer"]
