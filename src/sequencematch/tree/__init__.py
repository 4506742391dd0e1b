"""The state tree: trajectories as walks over shared states, packed so that one forward pass serves them all."""

from .attention import ancestor_mask
from .batch import TreeBatch, collate_trajectories
from .blocks import visible_blocks
from .reference import StateTree, Walk, collate_reference
from .tiles import Layout

__all__ = [
    "Layout",
    "StateTree",
    "TreeBatch",
    "Walk",
    "ancestor_mask",
    "collate_reference",
    "collate_trajectories",
    "visible_blocks",
]
