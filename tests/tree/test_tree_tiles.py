"""Packing trees into tiles: every row within bounds, little padding, and no short tree paying for a long one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_walks import row_spans

from sequencematch.tree import Layout
from sequencematch.tree.tiles import place_trees

sizes_lists = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 300)), min_size=1, max_size=40)


def rows_of(sizes, tiles, starts):
    """The (start, end) spans of the trees in each row."""
    spans = sorted((int(start), int(start) + size) for start, size in zip(starts, sizes, strict=True))
    return [[span for span in spans if first <= span[0] < last] for first, last in row_spans(tiles)]


@given(sizes_lists)
def test_rows_hold_whole_trees_from_their_left_end(sizes):
    tiles, starts = place_trees(sizes, Layout())
    for (first, last), trees in zip(row_spans(tiles), rows_of(sizes, tiles, starts), strict=True):
        assert trees
        assert first == trees[0][0]
        assert all(end == start for (_, end), (start, _) in pairwise(trees))
        assert trees[-1][1] <= last
    assert sum(map(len, rows_of(sizes, tiles, starts))) == len(sizes)


@given(sizes_lists)
def test_lengths_fall_and_equal_ones_are_one_tile(sizes):
    tiles, _ = place_trees(sizes, Layout())
    lengths = [length for _, length in tiles]
    assert lengths == sorted(set(lengths), reverse=True)
    assert lengths[0] == max(sizes)


@given(sizes_lists)
def test_every_row_is_more_than_half_full(sizes):
    tiles, starts = place_trees(sizes, Layout())
    n = sum(rows * length for rows, length in tiles)
    assert n < 2 * sum(sizes)
    for (first, last), trees in zip(row_spans(tiles), rows_of(sizes, tiles, starts), strict=True):
        assert 2 * sum(end - start for start, end in trees) > last - first


@given(sizes_lists)
def test_no_tree_lies_in_a_row_of_twice_its_size_unless_it_is_free_there(sizes):
    """The first tree of a row, for whom it was opened, fills more than half of it; others took what it left over."""
    tiles, starts = place_trees(sizes, Layout())
    for (first, last), trees in zip(row_spans(tiles), rows_of(sizes, tiles, starts), strict=True):
        assert 2 * (trees[0][1] - trees[0][0]) > last - first
    # What all rows cost in attention is at most four times what their first trees alone would.
    assert sum(rows * length**2 for rows, length in tiles) < 4 * sum(size**2 for size in sizes)


def test_a_tree_takes_the_fullest_row_that_has_room():
    # Rows of 10 with 0, 2, 3 and 4 to spare: 3 fits the third and the fourth, and takes the third.
    tiles, starts = place_trees([10, 8, 7, 6, 3], Layout())
    assert tiles == ((4, 10),)
    assert starts.tolist() == [0, 10, 20, 30, 27]


@pytest.mark.parametrize(
    ("sizes", "tiles"),
    [
        ([5], ((1, 5),)),
        ([5, 5, 5], ((3, 5),)),
        ([10, 6, 5, 5], ((2, 10), (2, 5))),  # 5 is not more than half of 10
        ([3, 10, 7], ((2, 10),)),
        ([20, 1000, 20, 20], ((1, 1000), (3, 20))),
        ([4, 3, 2, 1], ((2, 4), (1, 2))),
    ],
)
def test_tiles_by_hand(sizes, tiles):
    assert place_trees(sizes, Layout())[0] == tiles


def test_a_long_document_costs_short_ones_nothing():
    short = [20 + i % 7 for i in range(500)]
    tiles, _ = place_trees([*short, 8000], Layout())
    assert tiles[0] == (1, 8000)
    assert tiles[1:] == place_trees(short, Layout())[0]
    assert sum(rows * length**2 for rows, length in tiles[1:]) <= 1.5 * sum(size**2 for size in short)


@given(sizes_lists, st.sampled_from([1, 7, 128]))
def test_a_row_multiple_makes_one_row(sizes, multiple):
    tiles, starts = place_trees(sizes, Layout(row_multiple=multiple))
    ((rows, length),) = tiles
    assert rows == 1
    assert length % multiple == 0
    assert sum(sizes) <= length < sum(sizes) + multiple
    assert starts.tolist() == [sum(sizes[:i]) for i in range(len(sizes))]
