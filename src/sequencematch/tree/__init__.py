"""The state tree: trajectories as walks over shared states, packed so that one forward pass serves them all."""

from .attention import ancestor_mask
from .batch import TreeBatch, build_trees, collate_trees, pack
from .state_tree import StateTree, Walk

__all__ = ["StateTree", "TreeBatch", "Walk", "ancestor_mask", "build_trees", "collate_trees", "pack"]
