"""The paper's scheme as a baseline: one row per trajectory, one position per action, a token fed again per backspace.

After an append the new token is fed at its depth; after a deletion the last surviving token is fed again at its own.
A position sees the latest copy of each surviving token, so the state after an action sees exactly the surviving
string, as in the state tree; what differs is the work. Shapes: B rows of L positions, S actions, T = B trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from sequencematch.mdp import ActionSpace, Trajectory, states
from sequencematch.models import evaluate_states, layout_of, mask_illegal
from sequencematch.models.head import LogitTransform, head_values
from sequencematch.objectives import Steps, get_divergence, sequencematch_loss
from sequencematch.tree import collate_trajectories


@dataclass(frozen=True)
class RefeedBatch:
    """Rows of positions, right-padded to the longest, and the walks over them (flat positions)."""

    token: Tensor
    """int64 [B, L]."""
    depth: Tensor
    """int64 [B, L]: position ids."""
    mask: Tensor
    """bool [B, 1, L, L]: True where a query sees a key; padding sees itself."""
    completion_length: Tensor
    """int64 [B, L]: completion tokens in each position's state."""
    boundary: Tensor
    """int64 [K]: the flat positions whose state is the bare prompt, where some deletion may be illegal."""
    state: Tensor
    action: Tensor
    next: Tensor
    t: Tensor
    weight: Tensor
    trajectory: Tensor
    """[S] each, as in the tree's batch."""
    length: Tensor
    final: Tensor
    terminated: Tensor
    """[T] each, as in the tree's batch."""

    @property
    def positions(self) -> int:
        """Positions computed, padding included."""
        return self.token.numel()

    def to(self, device: str) -> RefeedBatch:
        """The same batch on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(trajectories: Sequence[Trajectory], space: ActionSpace) -> RefeedBatch:
    """Lay trajectories out, one per row, and build the mask."""
    rows = [_feed(trajectory, space) for trajectory in trajectories]
    width = max(len(tokens) for tokens, _ in rows)
    token = np.zeros((len(rows), width), np.int64)
    depth, real = np.zeros_like(token), np.zeros_like(token, dtype=bool)
    for row, (tokens, depths) in enumerate(rows):
        token[row, : len(tokens)], depth[row, : len(tokens)], real[row, : len(tokens)] = tokens, depths, True
    prompt = np.array([len(trajectory.prompt_ids) for trajectory in trajectories])
    completion = np.where(real, np.maximum(depth - (prompt[:, None] - 1), 0), 0)
    least = max((deletion.minimum_completion for deletion in space.deletions), default=0)
    arrays = {
        "token": token,
        "depth": depth,
        "mask": latest_copies(depth, real)[:, None],
        "completion_length": completion,
        "boundary": np.flatnonzero(real & (completion < least) & (np.arange(width) >= prompt[:, None] - 1)),
        **_walks(trajectories, prompt, width),
    }
    return RefeedBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def latest_copies(depth: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Which positions see which: the latest copy at each depth up to one's own. int, bool [B, L] -> bool [B, L, L].

    A deleted token is deeper than the state after its deletion, and the next token at its depth supersedes it.
    """
    rows, width = depth.shape
    place = np.arange(width)
    superseded = np.full((rows, width), width)
    for row in range(rows):
        order = np.lexsort((place, depth[row]))
        order = order[real[row][order]]
        same = depth[row][order[1:]] == depth[row][order[:-1]]
        superseded[row, order[:-1][same]] = order[1:][same]
    query, key = place[None, :, None], place[None, None, :]
    seen = (key <= query) & (query < superseded[:, None, :]) & (depth[:, None, :] <= depth[:, :, None])
    return np.where(real[:, :, None], seen & real[:, None, :], query == key)


def logits_of(model: torch.nn.Module, batch: RefeedBatch) -> Tensor:
    """The stock model's logits at every position: float [B, L, V]."""
    output = model(
        input_ids=batch.token, attention_mask=batch.mask, position_ids=batch.depth, use_cache=False
    )  # a 4-D mask is used as it is
    return output.logits


def steps_of(logits: Tensor, batch: RefeedBatch, space: ActionSpace) -> Steps:
    """Q and V along the walks, from full logits; only the few states at a prompt's end need the legality mask."""
    logits = logits.float().flatten(0, 1)
    values = logits.logsumexp(-1)
    edge = batch.boundary
    if len(edge):
        legal = mask_illegal(logits[edge], batch.completion_length.flatten()[edge], space)
        values = values.index_put((edge,), legal.logsumexp(-1))
    q = logits[batch.state, batch.action]
    return _steps(batch, q, values[batch.state], values[batch.next], values[batch.final])


def evaluate(model: torch.nn.Module, batch: RefeedBatch, space: ActionSpace) -> Steps:
    """`steps_of` after `logits_of`."""
    return steps_of(logits_of(model, batch), batch, space)


def losses_of_both(
    stock: torch.nn.Module, ours: torch.nn.Module, trajectories: Sequence[Trajectory], space: ActionSpace
) -> tuple[Tensor, Tensor, Tensor]:
    """The SequenceMatch loss of one set of demonstrations by re-feeding, that with our head, and on the state tree.

    Args:
        stock: a model as transformers made it.
        ours: one with the same weights that `prepare_model` has prepared.
        trajectories: the demonstrations.
        space: the action space.
    """
    rows = collate(trajectories, space)
    trees = collate_trajectories(trajectories, space, layout_of(ours))
    every = (
        evaluate(stock, rows, space),
        evaluate_with_our_head(stock, rows, space),
        evaluate_states(ours, trees, space),
    )
    options = {"divergence": get_divergence("lecam"), "alpha": 0.01, "gamma": 0.998}
    first, second, third = (sequencematch_loss(steps, **options)[0] for steps in every)
    return first, second, third


def evaluate_with_our_head(model: torch.nn.Module, batch: RefeedBatch, space: ActionSpace) -> Steps:
    """`evaluate` with the library's head on the states of the walks alone: what is left to differ is the tree."""
    hidden = model.base_model(
        input_ids=batch.token, attention_mask=batch.mask, position_ids=batch.depth, use_cache=False
    ).last_hidden_state
    first = torch.arange(len(batch.state), device=batch.state.device) + batch.trajectory
    final = (batch.length + 1).cumsum(0) - 1
    visited = hidden.new_empty(len(batch.state) + len(batch.length), dtype=torch.int64)
    visited[first], visited[final] = batch.state, batch.final
    q, values = head_values(
        model.get_output_embeddings(),
        hidden.flatten(0, 1)[visited],
        batch.completion_length.flatten()[visited],
        first,
        batch.action,
        space,
        LogitTransform.of(model.config),
    )
    return _steps(batch, q, values[first], values[first + 1], values[final])


def _steps(batch: RefeedBatch, q: Tensor, v: Tensor, v_next: Tensor, terminal_v: Tensor) -> Steps:
    return Steps(
        q=q,
        v=v,
        v_next=v_next,
        t=batch.t,
        weight=batch.weight,
        trajectory=batch.trajectory,
        length=batch.length,
        terminal_v=terminal_v,
        terminated=batch.terminated,
    )


def _feed(trajectory: Trajectory, space: ActionSpace) -> tuple[list[int], list[int]]:
    """The tokens fed and their depths: the prompt, then after each action the last token of the string it leaves."""
    before = trajectory.prompt_ids[:-1].tolist()
    ends = [(string[-1], len(string) - 1) for string in states(trajectory, space)]
    return before + [token for token, _ in ends], list(range(len(before))) + [depth for _, depth in ends]


def _walks(trajectories: Sequence[Trajectory], prompt: np.ndarray, width: int) -> dict[str, np.ndarray]:
    lengths = np.array([len(trajectory) for trajectory in trajectories], dtype=np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    t = np.concatenate([np.arange(length) for length in lengths])
    start = np.arange(len(lengths)) * width + prompt - 1
    return {
        "state": start[owner] + t,
        "action": np.concatenate([trajectory.actions for trajectory in trajectories]),
        "next": start[owner] + t + 1,
        "t": t,
        "weight": np.concatenate([trajectory.action_weights for trajectory in trajectories]).astype(np.float32),
        "trajectory": owner,
        "length": lengths,
        "final": start + lengths,
        "terminated": np.array([trajectory.terminated for trajectory in trajectories]),
    }
