"""The state trees of a whole batch at once, in NumPy: the fast path beside `reference`, and equal to it.

Shapes: T trajectories with S actions in all, G trees, E events, n nodes. An event is a token that is appended, by a
prompt or by an action: first those of the trees' prompts, then those of the actions. The state after an event is a
node; events that lead to the same string lead to the same node, and nodes are numbered in the order of their first
events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from ..mdp import ALL, ActionSpace, Trajectory
from ..mdp.replay import check_actions
from .chains import Chains


@dataclass(frozen=True)
class Steps:
    """The actions of T trajectories end to end."""

    action: np.ndarray
    """int64 [S]."""
    length: np.ndarray
    """int64 [T]: actions of each trajectory."""
    trajectory: np.ndarray
    """int64 [S]: the trajectory of each action."""
    first: np.ndarray
    """int64 [T]: where each trajectory's actions begin."""

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> Steps:
        """The actions in the order of the trajectories."""
        length = np.array([len(trajectory.actions) for trajectory in trajectories], dtype=np.int64)
        action = np.concatenate([trajectory.actions for trajectory in trajectories])
        return cls(action, length, np.repeat(np.arange(len(length)), length), np.cumsum(length) - length)

    def before(self, after: np.ndarray, start: np.ndarray | int) -> np.ndarray:
        """[S]: what `after` [S] was before each action, with `start` [T] at the beginning of a trajectory."""
        shifted = np.empty_like(after)
        shifted[1:] = after[:-1]
        begun = self.length > 0
        shifted[self.first[begun]] = np.broadcast_to(start, begun.shape)[begun]
        return shifted


@dataclass(frozen=True)
class Forest:
    """Every state of a batch, once, numbered as first reached, and the walks over them."""

    token: np.ndarray
    """int64 [n]: the last token of each state."""
    depth: np.ndarray
    """int64 [n]: the state's length minus one."""
    completion_length: np.ndarray
    """int64 [n]: completion tokens in the state."""
    size: np.ndarray
    """int64 [n]: descendants of each node, itself included."""
    chains: Chains
    """How the nodes hang together."""
    roots: np.ndarray
    """int64 [G]: the root of each tree."""
    state: np.ndarray
    """int64 [S]: the node each action was taken in."""
    next: np.ndarray
    """int64 [S]: the node it led to."""
    final: np.ndarray
    """int64 [T]: the node where each trajectory ends."""

    def flat_index(self, start: np.ndarray) -> np.ndarray:
        """int64 [n]: where each node lies if tree g lies in preorder from start[g] on."""
        return self.chains.preorder(self.size, start)


def grow(trajectories: Sequence[Trajectory], tree: Sequence[int], steps: Steps, space: ActionSpace) -> Forest:
    """The trees of trajectories: number tree[i] for trajectory i, whose prompt it shares with the others there.

    Trees are numbered in order of first appearance. Raises InputError as `mdp.states` does.
    """
    one_of_each = list(dict(zip(tree, trajectories, strict=True)).values())
    prompts = [trajectory.prompt_ids for trajectory in one_of_each]
    prompt = np.concatenate(prompts)
    prompt_length = np.array([len(p) for p in prompts], dtype=np.int64)
    root = np.cumsum(prompt_length) - prompt_length
    if prompt.max() >= space.vocab_size:
        for trajectory in one_of_each:
            check_actions(trajectory, space)
    need, after = _completion_lengths(steps, space)
    _check(trajectories, steps, need, after, space)

    start = (root + prompt_length - 1)[tree]  # [T]: the event that leads to the initial state
    reached = _events_reached(steps, need, after, start, len(prompt))
    appends = np.flatnonzero(need == 0)
    within = np.arange(len(prompt)) - np.repeat(root, prompt_length)
    completion = np.concatenate([np.zeros_like(prompt), after[appends]])
    depth = np.concatenate([within, after[appends] + (prompt_length[tree] - 1)[steps.trajectory[appends]]])
    token = np.concatenate([prompt, steps.action[appends]])
    parent = np.concatenate([np.arange(-1, len(prompt) - 1), steps.before(reached, start)[appends]])
    parent[root] = -1

    same = _first_of_equals(token, depth, parent)
    is_first = same == np.arange(len(same))
    firsts = np.flatnonzero(is_first)
    node = (np.cumsum(is_first) - 1)[same]
    chains = Chains(np.where(parent < 0, -1, node[parent])[firsts])
    after_last = np.append(start, reached)  # a trajectory without actions ends where it starts
    last = np.where(steps.length > 0, len(start) + steps.first + steps.length - 1, np.arange(len(start)))
    return Forest(
        token[firsts],
        depth[firsts],
        completion[firsts],
        chains.subtree_sizes(),
        chains,
        node[root],
        node[steps.before(reached, start)],
        node[reached],
        node[after_last[last]],
    )


def _completion_lengths(steps: Steps, space: ActionSpace) -> tuple[np.ndarray, np.ndarray]:
    """int64 [S] each: the shortest completion each action is legal at, 0 if it appends; the length it leads to."""
    need, change = np.zeros_like(steps.action), np.ones_like(steps.action)
    anchor = np.zeros(len(need), dtype=bool)  # where the length is known: it is the change itself
    anchor[steps.first[steps.length > 0]] = True
    for deletion in space.deletions:
        chosen = steps.action == deletion.token_id
        need[chosen] = deletion.minimum_completion
        if deletion.length == ALL:
            anchor |= chosen
            change[chosen] = 0
        else:
            change[chosen] = -deletion.length
    total = np.cumsum(change)
    anchored = np.maximum.accumulate(np.where(anchor, np.arange(len(need)), 0))
    return need, total - (total - change)[anchored]


def _check(
    trajectories: Sequence[Trajectory], steps: Steps, need: np.ndarray, after: np.ndarray, space: ActionSpace
) -> None:
    """Find the first bad action and let the functions that know the rules name it."""
    before = steps.before(after, 0)
    ends = steps.action == space.eos_token_id
    for_end = np.array([trajectory.terminated for trajectory in trajectories])
    ends[(steps.first + steps.length - 1)[for_end]] ^= True  # now True where <eos> is missing or out of place
    bad = np.flatnonzero(ends | (before < need) | (steps.action >= space.vocab_size))
    if len(bad):
        index = steps.trajectory[bad[0]]
        check_actions(trajectories[index], space)
        space.check_legal(int(steps.action[bad[0]]), int(before[bad[0]]), int(bad[0] - steps.first[index]))


def _events_reached(
    steps: Steps, need: np.ndarray, after: np.ndarray, start: np.ndarray, first_event: int
) -> np.ndarray:
    """int64 [S]: the event whose state each action leads to.

    An append leads to its own state, a deletion to that of the latest append before it, in its trajectory, that led to
    the same length.
    """
    is_append = need == 0
    reached = np.cumsum(is_append) + (first_event - 1)
    deletions = np.flatnonzero(~is_append)
    if len(deletions):
        # One number for (trajectory, length, time): lengths of a trajectory fit in as many slots as it has actions.
        bits = len(need).bit_length()
        code = ((steps.first[steps.trajectory] + after - 1) << bits) + np.arange(len(need))
        appends = np.sort(code[is_append])
        latest = appends[np.searchsorted(appends, code[deletions]) - 1] & ((1 << bits) - 1)
        initial = start[steps.trajectory[deletions]]
        reached[deletions] = np.where(after[deletions] == 0, initial, reached[latest])
    return reached


def _first_of_equals(token: np.ndarray, depth: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """int64 [E]: for each event the first one that leads to the same string of the same tree.

    Strings are told apart by a hash of 64 bits. That none were confused is then proved by induction from the roots,
    each of which stands for itself alone: equals have equal tokens after equal parents.
    """
    chains, event = Chains(parent), np.arange(len(parent))
    is_root = parent < 0
    code = (token << 32 | depth).astype(np.uint64)
    code[is_root] = np.arange(is_root.sum(), dtype=np.uint64)  # the tree's number: trees share nothing
    for seed in count():
        hashes = chains.path_sums(_mixed(code, seed))
        order = np.argsort(hashes)
        opens = np.flatnonzero(np.append(True, np.diff(hashes[order]) != 0))
        same = np.empty_like(event)
        same[order] = np.repeat(np.minimum.reduceat(order, opens), np.diff(np.append(opens, len(order))))
        before = np.where(is_root, ~event, same[parent])
        if np.array_equal(token, token[same]) and np.array_equal(before, before[same]):
            break
    return same


def _mixed(code: np.ndarray, seed: int) -> np.ndarray:
    """uint64 to uint64: SplitMix64, so that sums of the results are as good as random."""
    x = code + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
