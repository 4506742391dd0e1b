"""Mistakes for the expert to take back: where backspace demonstrations come from."""

from .demonstrate import Mistake, demonstrate
from .model import ModelNoise
from .rollout import RolloutNoise
from .sources import NoiseSource, NoNoise, TaskNoise, UniformNoise

__all__ = [
    "Mistake",
    "ModelNoise",
    "NoNoise",
    "NoiseSource",
    "RolloutNoise",
    "TaskNoise",
    "UniformNoise",
    "demonstrate",
]
