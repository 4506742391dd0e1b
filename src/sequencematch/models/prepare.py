"""Making a stock model run state trees and rollouts: its attention, and a forward that takes a tree or reads states.

Shapes: n nodes, D hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ..mdp import ActionSpace, Trajectory
from ..tree import Layout, TreeBatch, collate_trajectories
from .attention import choose, layout_for, tree_masks
from .four_bit import keep_differentiable
from .head import LogitTransform, head_logits
from .masks import is_eager
from .modes import evaluation_mode
from .support import EAGER, SDPA, check_supported, unsupported

Read = Callable[[nn.Module, Tensor, LogitTransform], Any]
"""What is made of hidden states: (head, hidden float [n, D], transform) -> tensors."""


def prepare_model(model: Any, attention: str = "auto") -> None:
    """Let a model run state trees; everything else that it does stays as it was.

    Its forward then also takes `tree=` and `read=` (see `run_tree`), and its layers use the attention of
    `models.attention`. The first time that an attention runs, a small tree is compared with its paths run alone.

    Args:
        model: the causal language model, with or without adapters.
        attention: `auto`, `tiled`, `flex` or `dense` (see `choose`).

    Raises InputError for a model that cannot run trees, or an attention that cannot run here.
    """
    core = core_of(model)
    check_supported(core)
    choose(core, attention)
    if not hasattr(core, "tree_attention"):
        core.proven_attention = set()
        extend_forward(core)
        core.set_attn_implementation(_planned(core))
    core.tree_attention = attention
    _prove(core)


def extend_forward(core: Any) -> None:
    """Let a stock model's forward also take `read` and `hidden`, and `tree`; called without them it is as before.

    With `read` it returns what `read` makes of the last hidden states of the one row it is given; with `hidden`, float
    [n, D], of those, and the backbone does not run.
    """
    if not hasattr(core, "plain_forward"):
        keep_differentiable(core)  # before anything runs
        core.plain_forward = core.forward
        core.forward = MethodType(_extended_forward(type(core)), core)  # type: ignore[arg-type]


@contextmanager
def planned_attention(core: Any) -> Iterator[None]:
    """Inside, a stock model's layers take planned masks (`models.attention`); afterwards it is as it was found."""
    before = core.config._attn_implementation
    try:
        if before not in (SDPA, EAGER):
            core.set_attn_implementation(_planned(core))
        yield
    finally:
        if before not in (SDPA, EAGER):
            core.set_attn_implementation(before)


def _planned(core: Any) -> str:
    return EAGER if is_eager(core.config) or not core._supports_sdpa else SDPA


def layout_of(model: Any) -> Layout:
    """How batches for this model are laid out: `collate_trajectories(trajectories, space, layout_of(model))`."""
    core = _prepared(model)
    return layout_for(choose(core, core.tree_attention), core.config)


def run_tree(model: Any, batch: TreeBatch, read: Read | None) -> Any:
    """Run the backbone over the trees, and `read` its last hidden states inside the model's own forward.

    Inside, because that is where a sharded or wrapped model has its weights at hand.

    Args:
        model: the model, or the DDP or FSDP module around it; prepared if it is not yet.
        batch: the trees, on the model's device.
        read: what to return; None for the logits of all nodes, float [n, V], by the model's own head.
    """
    _prepared(model)
    return model(input_ids=batch.token[None], tree=batch, read=read)


def core_of(model: Any) -> Any:
    """The stock model inside adapters' and parallelism's wrappers."""
    inner = extract_model_from_parallel(model)
    return getattr(inner, "get_base_model", lambda: inner)()


def _prepared(model: Any) -> Any:
    core = core_of(model)
    if not hasattr(core, "tree_attention"):
        prepare_model(core)
    _prove(core)  # it may have moved to another device since, and so to another attention
    return core


@functools.cache
def _extended_forward(family: type) -> Callable:
    # Keeps the family's signature, by which generation and training tell what the model takes.
    @functools.wraps(family.forward)  # type: ignore[attr-defined]
    def forward(
        self: Any,
        *args: Any,
        tree: TreeBatch | None = None,
        read: Read | None = None,
        hidden: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if tree is not None:
            masks = tree_masks(choose(self, self.tree_attention), self.config, tree, compute_dtype(self))
            kwargs = {
                "input_ids": tree.token[None],
                "attention_mask": masks,
                "position_ids": tree.depth[None],
                "use_cache": False,
            }
        if read is None:
            output = self.plain_forward(*args, **kwargs)
            return output if tree is None else output.logits[0]
        if hidden is None:
            hidden = self.base_model(*args, **kwargs).last_hidden_state[0]
        return read(self.get_output_embeddings(), hidden, LogitTransform.of(self.config))

    return forward


def compute_dtype(model: Any) -> torch.dtype:
    """The type that a stock model's layers compute in here."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def has_whole_head(core: Any) -> bool:
    """Whether all weights are here, and the output embedding is a matrix: they may be packed, or sharded elsewhere."""
    weight = core.get_output_embeddings().weight
    return weight.ndim == 2 and not weight.is_meta and all(parameter.numel() for parameter in core.parameters())


def differs(core: Any, found: Tensor, alone: Tensor) -> float | None:
    """How far logits [M, V] are from what they should equal, as a share of the spread; None if that is rounding."""
    # Elsewhere than on a CPU, float32 may be computed with half of its digits; accelerate marks mixed precision so.
    mixed = hasattr(core, "_original_forward") or getattr(core, "is_quantized", False)
    exact = core.dtype == torch.float32 and core.device.type == "cpu" and not mixed
    finite = alone.isfinite()  # weights may have diverged, and somebody's hook may rule tokens out
    found, alone = found[finite], alone.to(found.dtype)[finite]
    spread = (alone - alone.mean()).norm() if len(alone) else found.new_zeros(())
    error = float((found - alone).norm() / spread.clamp(min=torch.finfo(found.dtype).tiny))
    return None if error <= (1e-3 if exact else 0.1) else error


def _prove(core: Any) -> None:
    """The first time that an attention runs: raise InputError unless a small tree gives what its paths give alone.

    The paths run by the model's own forward, so this also shows whether the head does what `LogitTransform` says.
    """
    attention = choose(core, core.tree_attention)
    if attention in core.proven_attention or not has_whole_head(core):
        return
    core.proven_attention.add(attention)
    try:
        error = differs(core, *_tree_and_paths(core))
        if error is not None:
            raise unsupported(core, f"a state tree differs from its paths run alone by {error:.1%} ({attention})")
    except BaseException:
        core.proven_attention.remove(attention)
        raise


def _tree_and_paths(core: Any) -> tuple[Tensor, Tensor]:
    """The logits at the ends of a small tree, and those of its paths."""
    vocab_size = len(core.get_output_embeddings().weight)
    tokens = [1 + i % (vocab_size - 1) for i in range(6)]
    paths = [tokens[:4], [*tokens[:2], *tokens[4:]]]
    branches = [Trajectory(np.array(path[:2]), np.array(path[2:]), terminated=False) for path in paths]
    batch = collate_trajectories(branches, ActionSpace(vocab_size, 0), layout_of(core)).to(core.device)
    with evaluation_mode(core), torch.no_grad():
        found = run_tree(core, batch, head_logits)[batch.final]
        return found, core(input_ids=torch.tensor(paths, device=core.device), use_cache=False).logits[:, -1]
