"""The token Markov decision process: actions, trajectories and their replay. Plain NumPy, no torch."""

from .actions import ALL, ActionSpace, Deletion
from .departures import departures
from .replay import Replay, replay, states
from .trajectory import Trajectory

__all__ = ["ALL", "ActionSpace", "Deletion", "Replay", "Trajectory", "departures", "replay", "states"]
