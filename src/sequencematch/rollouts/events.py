"""What happens in a rollout, one event at a time: for those who watch while it is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Rollout


@dataclass(frozen=True, slots=True)
class Append:
    """A token was appended."""

    index: int
    """Which prompt's rollout."""
    token_id: int
    """The token."""


@dataclass(frozen=True, slots=True)
class Delete:
    """A deletion action took tokens back."""

    index: int
    """Which prompt's rollout."""
    token_id: int
    """The deletion action."""
    count: int
    """How many tokens it deleted, at least 1."""


@dataclass(frozen=True, slots=True)
class End:
    """A rollout ended; nothing follows for its index."""

    index: int
    """Which prompt's rollout."""
    rollout: Rollout
    """All of it."""


Event = Append | Delete | End
