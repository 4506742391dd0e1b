"""Reading a module's weights where they are at hand: inside its own forward.

FSDP2 and DeepSpeed ZeRO-3 gather a module's weights in the hooks of its call, and accelerate's on the right device.
FSDP2 also counts the calls of the modules that it shards together, so a head that is read from outside leaves its
group unfinished.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_SHARDING = ("torch.distributed.", "deepspeed.")
"""Packages whose hooks gather weights."""


def within(module: nn.Module, hidden: Tensor, read: Callable[[Any, Tensor], Any]) -> Any:
    """What `read(module, hidden)` returns, called by the module's own forward, between its hooks.

    The module's forward takes the keyword `read` from then on; called without it, it is as before.

    Args:
        module: the module to read.
        hidden: its input. `read` gets what the hooks make of it, and must use that.
        read: returns tensors.
    """
    if not _is_extended(module):
        setattr(module, _innermost(module), MethodType(forward, module))
    return module(hidden, read=read)


def runs_its_class(module: nn.Module) -> bool:
    """Whether the module's forward is that of its class: nobody has put another in its place, or a hook behind it.

    Hooks that gather sharded weights do not count, as they leave the output alone, nor do those before the forward.
    """
    own = vars(module).get(_innermost(module))
    harmless = (getattr(hook, "__module__", "").startswith(_SHARDING) for hook in module._forward_hooks.values())
    return all(harmless) and (own is None or getattr(own, "__func__", None) in (forward, type(module).forward))


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix and perhaps a bias: nothing quantised, and no forward of somebody's own."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and runs_its_class(module)
        and type(module.weight) in (nn.Parameter, DTensor)
    )


def forward(self: Any, *args: Any, read: Callable | None = None, **kwargs: Any) -> Any:
    """The forward that `within` gives to a module; by this name a pickled module finds its class's own again."""
    return type(self).forward(self, *args, **kwargs) if read is None else read(self, *args)


def _innermost(module: nn.Module) -> str:
    """Where the forward is that runs between all hooks: accelerate's put themselves in its place."""
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"


def _is_extended(module: nn.Module) -> bool:
    return getattr(vars(module).get(_innermost(module)), "__func__", None) is forward
