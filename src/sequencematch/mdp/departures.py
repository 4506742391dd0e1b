"""Where a trajectory leaves the way of an expert that writes one completion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .actions import ActionSpace
from .trajectory import Trajectory


def departures(trajectory: Trajectory, completion_ids: Sequence[int], space: ActionSpace) -> np.ndarray:
    """Which actions have no mass in the occupancy measure of an expert that writes one completion and nothing else.

    They are all actions in states that the completion does not begin with, every deletion, and every token that is not
    the completion's next. Tokens only are read: a state is on the way again once what was wrong is deleted.

    Args:
        trajectory: of N actions.
        completion_ids: the expert's, `<eos>` included.
        space: what the actions mean. Raises InputError for an illegal one.

    Returns:
        bool [N].
    """
    found = np.zeros(len(trajectory), dtype=bool)
    length = right = 0  # of the completion so far: its tokens, and how many of them it begins with as the expert does
    for step, action in enumerate(trajectory.actions.tolist()):
        space.check_legal(action, length, step)
        on_the_way = right == length
        appends = action not in space.by_token
        follows = on_the_way and appends and length < len(completion_ids) and action == completion_ids[length]
        found[step] = not follows
        length = space.next_length(action, length)
        right = right + 1 if follows else min(right, length)
    return found
