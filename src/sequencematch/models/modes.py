"""Evaluating a model in the middle of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for a while, and leave the model as it was found."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
