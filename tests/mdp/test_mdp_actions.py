"""Which actions there are, which are legal where, and how few deletions lead back."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion

VOCAB, EOS = 20, 0


def space_of(*lengths):
    return ActionSpace(VOCAB, EOS, tuple(Deletion(10 + i, length) for i, length in enumerate(lengths)))


@pytest.mark.parametrize("length", [0, -1, 1.5, "some", None])
def test_lengths_that_delete_nothing(length):
    with pytest.raises(InputError, match="at least 1 or 'all'"):
        Deletion(1, length)


@pytest.mark.parametrize("eos", [-1, 5])
def test_eos_must_be_in_the_vocabulary(eos):
    with pytest.raises(InputError, match=f"token id {eos} is out of range for a vocabulary of 5"):
        ActionSpace(5, eos)


@pytest.mark.parametrize("token", [-1, 5])
def test_deletions_must_be_in_the_vocabulary(token):
    with pytest.raises(InputError, match=f"token id {token} is out of range for a vocabulary of 5"):
        ActionSpace(5, 0, (Deletion(4, 1), Deletion(token, 1)))
    assert ActionSpace(5, 4, (Deletion(0, 1),)).by_token == {0: Deletion(0, 1)}


@pytest.mark.parametrize("tokens", [(0,), (3, 3), (3, 0)])
def test_clashing_tokens(tokens):
    with pytest.raises(InputError, match="token ids of their own"):
        ActionSpace(5, 0, tuple(Deletion(token, 1 + i) for i, token in enumerate(tokens)))


@pytest.mark.parametrize("length", [1, 2, 3, ALL])
@pytest.mark.parametrize("completion", range(6))
def test_a_deletion_needs_as_many_tokens_as_it_takes(length, completion):
    space = space_of(length)
    needed = 1 if length == ALL else length
    assert space.is_legal(10, completion) == (completion >= needed)
    if completion >= needed:
        assert space.next_length(10, completion) == (0 if length == ALL else completion - length)
    assert space.is_legal(5, completion)
    assert space.is_legal(EOS, completion)
    assert space.next_length(5, completion) == space.next_length(EOS, completion) == completion + 1


def brute_force(space, start, target, limit):
    """The fewest deletions from start to target by trying all sequences, or None."""
    for count in range(limit + 1):
        for plan in product(space.by_token, repeat=count):
            length = start
            for token in plan:
                if not space.is_legal(token, length):
                    break
                length = space.next_length(token, length)
            else:
                if length == target:
                    return count
    return None


def follow(space, start, plan):
    for token in plan:
        assert space.is_legal(token, start)
        start = space.next_length(token, start)
    return start


@given(
    st.lists(st.sampled_from([1, 2, 3, 5, ALL]), unique=True, max_size=3),
    st.integers(0, 7),
    st.integers(0, 7),
)
def test_plans_are_the_shortest(lengths, start, target):
    start, target = max(start, target), min(start, target)
    space = space_of(*lengths)
    exact = brute_force(space, start, target, start)
    restart = brute_force(space, start, 0, start)
    if exact is None and restart is None:
        with pytest.raises(InputError, match=f"from {start} completion tokens back to {target}"):
            space.plan_deletion(start, target)
        return
    plan, landing = space.plan_deletion(start, target)
    assert landing == (target if exact is not None else 0)
    assert follow(space, start, plan) == landing
    assert len(plan) == (exact if exact is not None else restart)


def test_plans_by_hand():
    assert space_of(1).plan_deletion(7, 4) == ([10, 10, 10], 4)
    assert space_of(1, 3).plan_deletion(7, 3) in [([10, 11], 3), ([11, 10], 3)]
    assert space_of(ALL).plan_deletion(7, 4) == ([10], 0)
    assert space_of(1, ALL).plan_deletion(7, 4) == ([10, 10, 10], 4)
    assert space_of(1, ALL).plan_deletion(7, 0) == ([11], 0)
    assert space_of(1).plan_deletion(4, 4) == ([], 4)
    assert ActionSpace(5, 0).plan_deletion(4, 4) == ([], 4)


@pytest.mark.parametrize(("lengths", "start", "target"), [((), 2, 1), ((3,), 4, 2), ((2,), 1, 0)])
def test_no_plan(lengths, start, target):
    with pytest.raises(InputError, match="add a deletion of length 1 or 'all'"):
        space_of(*lengths).plan_deletion(start, target)


@pytest.mark.parametrize(("tokens", "bad"), [([0, 20, 1], 20), ([19, -1], -1)])
def test_tokens_out_of_range(tokens, bad):
    with pytest.raises(InputError, match=f"token id {bad} in the essay is out of range for a vocabulary of 20"):
        space_of(1).check_tokens(tokens, "essay")
    space_of(1).check_tokens([], "essay")
    space_of(1).check_tokens([0, 19], "essay")
