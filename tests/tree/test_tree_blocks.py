"""The blocks of the ancestor mask against the dense mask."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_walks import cases, make

from sequencematch.tree import Layout, ancestor_mask, collate_trajectories, visible_blocks


def dense_blocks(batch, size, window):
    """Whether each block of the dense mask holds anything, and whether it holds everything."""
    mask = ancestor_mask(batch.depth, batch.exit, window)
    blocks = mask.view(len(mask) // size, size, len(mask) // size, size).transpose(1, 2).flatten(2)
    return blocks.any(-1), blocks.all(-1)


@given(cases, st.sampled_from([1, 2, 4]), st.booleans())
def test_without_a_window_exactly_the_blocks_that_hold_anything(legal_walk, space, cases, size, share):
    layout = Layout(512.0 if share else 0.0, row_multiple=4)
    batch = collate_trajectories([make(case, legal_walk, space) for case in cases], space, layout)
    some, every = dense_blocks(batch, size, None)
    partial, full = visible_blocks(batch.depth, batch.exit, size)
    assert partial.dtype == full.dtype == torch.bool
    assert torch.equal(partial | full, some)
    assert not (partial & full).any()
    # Off the diagonal, where a block of more than one node is never full, the full blocks are all found.
    assert torch.equal(full, every & ~torch.eye(len(full), dtype=torch.bool))


@given(cases, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3, 6, 50]))
def test_with_a_window_nothing_visible_is_lost_and_full_is_full(legal_walk, space, cases, size, window):
    layout = Layout(row_multiple=4)
    batch = collate_trajectories([make(case, legal_walk, space) for case in cases], space, layout)
    some, every = dense_blocks(batch, size, window)
    partial, full = visible_blocks(batch.depth, batch.exit, size, window)
    assert not (some & ~(partial | full)).any()
    assert not (full & ~every).any()
    assert not (partial & full).any()
    without, _ = dense_blocks(batch, size, None)
    assert not ((partial | full) & ~without).any()


@pytest.mark.parametrize(("window", "seen"), [(None, 10), (2, 7), (8, 9), (100, 10)])
def test_a_chain_by_hand(window, seen):
    """One chain of 16 nodes in blocks of 4: causal attention, and a band of it."""
    partial, full = visible_blocks(torch.arange(16), torch.full((16,), 16), 4, window)
    below = torch.ones(4, 4).tril(-1).bool()
    assert (partial | full).sum() == seen
    assert torch.equal(partial.diagonal(), torch.ones(4, dtype=torch.bool))
    if window is None or window == 100:
        assert torch.equal(full, below)
    elif window == 8:  # the farthest pair of neighbouring blocks is 7 apart
        assert torch.equal(full, below & ~below.tril(-2))
    else:
        assert not full.any()
