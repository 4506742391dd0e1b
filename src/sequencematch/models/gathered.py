"""Sharded weights gathered on every rank, for forwards that not all ranks make, or not equally many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from ..errors import InputError
from .prepare import core_of, prepare_model

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def whole_weights(
    model: Any, accelerator: Accelerator, gradient_checkpointing_kwargs: dict | None = None
) -> Iterator[None]:
    """Inside, the policy runs without communication, as if it were in one process; for rollouts and model noise.

    Every rank must enter and leave together. Inside, ranks may make different numbers of forwards, of the unwrapped
    model and without gradients. Afterwards the weights are sharded as before, and training goes on.

    With FSDP2 and DeepSpeed ZeRO-3 each rank holds all weights meanwhile. With DDP, ZeRO-1 and ZeRO-2, or in one
    process, they are whole anyway and nothing happens.

    Args:
        model: the wrapped model (`Trainer.model_wrapped`).
        accelerator: the accelerator that wrapped it.
        gradient_checkpointing_kwargs: with which ZeRO-3 turns gradient checkpointing on again, if it was on.

    Raises InputError for FSDP1.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise InputError(
            "rollouts and model noise cannot gather what FSDP1 shards; set fsdp_version: 2 in the accelerate config"
        )
    with ExitStack() as stack:
        if _is_zero3(accelerator):
            from trl.models import unwrap_model_for_generation

            stack.enter_context(
                unwrap_model_for_generation(
                    model, accelerator, gradient_checkpointing_kwargs=gradient_checkpointing_kwargs
                )
            )
        stack.enter_context(_unsharded(model))
        core = core_of(model)
        if hasattr(core, "tree_attention"):
            # The first tree on a device is checked against its paths: here, where a rank may be the only one to run it.
            prepare_model(core, core.tree_attention)
        yield


def _is_zero3(accelerator: Accelerator) -> bool:
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, what FSDP2 has sharded is a plain model with plain weights."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for module in sharded:
            module.unshard()
        with ExitStack() as stack:
            for module in sharded:
                stack.enter_context(_without_fsdp_hooks(module))
            yield
    finally:
        for module in sharded:
            module.reshard()


@contextmanager
def _without_fsdp_hooks(module: Any) -> Iterator[None]:
    """Inside, calling a module neither gathers nor shards anything.

    FSDP2's hooks also keep the order of all forwards since the last backward, and prefetch weights by it: forwards
    that not all ranks make would have them wait for each other for ever.
    """
    before = module._forward_pre_hooks, module._forward_hooks
    module._forward_pre_hooks, module._forward_hooks = map(_but_fsdp, before)
    try:
        yield
    finally:
        module._forward_pre_hooks, module._forward_hooks = before


def _but_fsdp(hooks: dict[int, Any]) -> dict[int, Any]:
    ours = ((key, hook) for key, hook in hooks.items() if not hook.__module__.startswith("torch.distributed.fsdp."))
    return OrderedDict(ours)
