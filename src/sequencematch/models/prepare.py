"""Making a stock model run state trees: its attention, and a forward pass that takes a tree.

Shapes: n nodes, D hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ..mdp import ActionSpace, Trajectory
from ..tree import Layout, TreeBatch, collate_trajectories
from .attention import choose, layout_for, tree_masks
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
        core.plain_forward = core.forward
        core.forward = MethodType(_tree_forward(type(core)), core)  # type: ignore[arg-type]
        core.set_attn_implementation(EAGER if is_eager(core.config) else SDPA)
    core.tree_attention = attention
    _prove(core)


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
def _tree_forward(family: type) -> Callable:
    # Keeps the family's signature, by which generation and training tell what the model takes.
    @functools.wraps(family.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, tree: TreeBatch | None = None, read: Read | None = None, **kwargs: Any) -> Any:
        if tree is None:
            return self.plain_forward(*args, **kwargs)
        masks = tree_masks(choose(self, self.tree_attention), self.config, tree, _compute_dtype(self))
        inputs = {"input_ids": tree.token[None], "attention_mask": masks, "position_ids": tree.depth[None]}
        if read is None:
            return self.plain_forward(**inputs, use_cache=False).logits[0]
        hidden = self.base_model(**inputs, use_cache=False).last_hidden_state[0]
        return read(self.get_output_embeddings(), hidden, LogitTransform.of(self.config))

    return forward


def _compute_dtype(model: Any) -> torch.dtype:
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def _prove(core: Any) -> None:
    """The first time that an attention runs: raise InputError unless a small tree gives what its paths give alone.

    The paths run by the model's own forward, so this also shows whether the head does what `LogitTransform` says.
    """
    attention = choose(core, core.tree_attention)
    weight = core.get_output_embeddings().weight
    if attention in core.proven_attention or weight.ndim != 2 or weight.is_meta:
        return  # the latter two are packed, or sharded elsewhere: there is nothing to compare yet
    core.proven_attention.add(attention)
    try:
        error = _difference_from_paths(core, len(weight))
        # Elsewhere than on a CPU, float32 may be computed with half of its digits.
        exact = core.dtype == torch.float32 and core.device.type == "cpu" and not getattr(core, "is_quantized", False)
        if not error <= (1e-3 if exact else 0.1):
            raise unsupported(core, f"a state tree differs from its paths run alone by {error:.1%} ({attention})")
    except BaseException:
        core.proven_attention.remove(attention)
        raise


def _difference_from_paths(core: Any, vocab_size: int) -> float:
    """How far the logits at the ends of a small tree are from those of its paths, as a share of their spread."""
    tokens = [1 + i % (vocab_size - 1) for i in range(6)]
    paths = [tokens[:4], [*tokens[:2], *tokens[4:]]]
    branches = [Trajectory(np.array(path[:2]), np.array(path[2:]), terminated=False) for path in paths]
    batch = collate_trajectories(branches, ActionSpace(vocab_size, 0), layout_of(core)).to(core.device)
    with evaluation_mode(core), torch.no_grad():
        found = run_tree(core, batch, head_logits)[batch.final]
        alone = core(input_ids=torch.tensor(paths, device=core.device), use_cache=False).logits[:, -1].to(found.dtype)
    spread = (alone - alone.mean(-1, keepdim=True)).norm()
    return float((found - alone).norm() / spread.clamp(min=torch.finfo(found.dtype).tiny))
