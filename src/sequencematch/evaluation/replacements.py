"""Whether deletions help: what the policy writes in the place of a token that it took back, and which is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..mdp import ActionSpace, Trajectory, states
from ..models import evaluate_states, evaluation_mode
from ..models.adapters import stock_layer
from ..models.prepare import core_of
from ..tree import TreeBatch
from .backspace import Deleted, deletions_of
from .statistics import Interval, ratio_interval
from .walks import tree_batches

if TYPE_CHECKING:
    from ..rollouts import Rollout


class Replacement(NamedTuple):
    """A token that was taken back, and what came in its place."""

    state: tuple[int, ...]
    """The prompt, and what the deletion left of the completion."""
    deleted: int
    """The token that stood after it: the first one, where the deletion took several."""
    replacement: int
    """What is appended there next; it may be `<eos>`, or the deleted token again."""


@dataclass(frozen=True)
class Improvement:
    """What a scorer thinks of the tokens that replaced deleted ones."""

    share: Interval | None
    """Share of replacements by another token that the scorer finds more probable than the deleted one in the same
    state; equally probable ones count half. With its 95% interval over rollouts; None if there are none."""
    replaced: int
    """Deletions whose token was replaced by another: those that the share is of."""
    repeated: int
    """Deletions after which the same token was appended again."""
    unreplaced: int
    """Deletions after which nothing is appended in the state that they led to: more was deleted, or the walk was cut
    there."""


def replacements(rollouts: Sequence[Rollout], space: ActionSpace) -> list[Replacement]:
    """The deleted token and its replacement, in the order of rollouts and of deletions within them.

    The replacement is the next action that appends in the state which the deletion led to: the next one tried, whether
    or not it stands in the end. States being strings, that may also be after more was deleted and written anew. A
    deletion without such an action is left out. Raises InputError for an illegal deletion.
    """
    found = []
    for rollout in rollouts:
        walk = rollout.trajectory
        deletions = deletions_of(walk, space)
        strings = list(states(walk, space))
        for _, step, deleted, replacement in _places([walk], [deletions]).tolist():
            found.append(Replacement(strings[step], deleted, replacement))
    return found


def improved(rollouts: Sequence[Rollout], scorer: Any, space: ActionSpace, batch_size: int = 16) -> Improvement:
    """How often the replacement of a deleted token is better, in the eyes of a language model.

    For each of `replacements` by another token: whether the scorer's log-probability of it is above that of the deleted
    token. Both are of one state, so the logits tell. One forward pass over the trees of each batch.

    Args:
        rollouts: what the policy did.
        scorer: the policy itself, or another causal language model with its tokens, on its device; it need not know
            the deletions. It is evaluated in evaluation mode.
        space: the policy's action space.
        batch_size: rollouts in one forward pass.

    Raises InputError for rollouts that exceed the scorer's positions or vocabulary, for an illegal deletion, and for
    logits that are not finite.
    """
    walks = [rollout.trajectory for rollout in rollouts]
    deletions = [deletions_of(walk, space) for walk in walks]
    replaced = _places(walks, deletions)
    changed = replaced[replaced[:, 2] != replaced[:, 3]]
    counts = np.bincount(changed[:, 0], minlength=len(walks))
    wins = np.bincount(changed[:, 0], _preferences(scorer, walks, changed, space, batch_size), len(walks))
    return Improvement(
        share=ratio_interval(wins, counts) if len(changed) else None,
        replaced=len(changed),
        repeated=len(replaced) - len(changed),
        unreplaced=sum(map(len, deletions)) - len(replaced),
    )


def _places(walks: Sequence[Trajectory], deletions: Sequence[Sequence[Deleted]]) -> np.ndarray:
    """The deletions that have a replacement, as int64 [R, 4]: walk, index of the replacing action, and both tokens."""
    found = [
        (index, deleted.replaced_at, deleted.tokens[0], walk.actions[deleted.replaced_at])
        for index, (walk, of_walk) in enumerate(zip(walks, deletions, strict=True))
        for deleted in of_walk
        if deleted.replaced_at is not None
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def _preferences(
    scorer: Any, walks: Sequence[Trajectory], places: np.ndarray, space: ActionSpace, batch_size: int
) -> np.ndarray:
    """For `places` in order of walks: 1 where the scorer prefers the replacement, 0 where not, 1/2 if undecided."""
    plain = ActionSpace(len(stock_layer(core_of(scorer).get_output_embeddings()).weight), space.eos_token_id)
    for walk in walks:
        plain.check_tokens(walk.prompt_ids.tolist(), "prompt")
        plain.check_tokens([action for action in walk.actions.tolist() if action not in space.by_token], "rollout")
    found = [np.zeros(0)]
    first = 0
    for batch in tree_batches(scorer, space, walks, batch_size):
        own = places[(first <= places[:, 0]) & (places[:, 0] < first + len(batch.length))]
        if len(own):
            before, after = _logits(scorer, batch, own - [first, 0, 0, 0], plain)
            found.append((after > before) + (after == before) / 2)
        first += len(batch.length)
    return np.concatenate(found)


def _logits(scorer: Any, batch: TreeBatch, places: np.ndarray, plain: ActionSpace) -> np.ndarray:
    """The logits of deleted tokens and of their replacements, float64 [2, R], at `places` in the batch's walks."""
    walk, step, deleted, replacement = torch.from_numpy(places.T.copy()).to(batch.state.device)
    rows = (batch.length.cumsum(0) - batch.length)[walk] + step
    # Two steps for each place, and none of the walks' own, so that only the states in question are projected.
    pairs: dict[str, Any] = {
        name: getattr(batch, name)[rows].repeat(2) for name in ("state", "t", "weight", "trajectory")
    }
    pairs |= {"next": pairs["state"], "action": torch.cat([deleted, replacement])}
    with evaluation_mode(scorer), torch.no_grad():
        logits = evaluate_states(scorer, replace(batch, **pairs), plain).q.double().cpu().view(2, -1).numpy()
    if not np.isfinite(logits).all():
        raise InputError("the scorer's logits are not finite; its weights may have diverged")
    return logits
