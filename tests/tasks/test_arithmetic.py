import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from sequencematch.errors import InputError
from sequencematch.tasks import AddOrSubInBase, TextMistake
from sequencematch.tasks.arithmetic import MAX_ANSWER_LENGTH, in_base, signed_integer, split_entropy

PUBLISHED = re.compile(r"In base (\d+), what is (\S+) ([+-]) (\S+)\?\n")
COMPACT = re.compile(r"(\d+):(-?\w+)([+-])(-?\w+)=")

options = st.fixed_dictionaries(
    {
        "digits": st.none() | st.integers(1, 12),
        "bases": st.tuples(st.integers(2, 36), st.integers(2, 36)).map(lambda pair: tuple(sorted(pair))),
        "compact": st.booleans(),
    }
)


def read(prompt):
    match = PUBLISHED.fullmatch(prompt) or COMPACT.fullmatch(prompt)
    base = int(match[1])
    return base, int(match[2], base), match[3], int(match[4], base)


@given(options, st.integers(0, 2**32))
def test_answers_are_right_in_both_forms(kinds, seed):
    task = AddOrSubInBase(**kinds)
    prompt, answer = task.sample(np.random.default_rng(seed))
    base, p, operator, q = read(prompt)
    assert int(answer, base) == (p + q if operator == "+" else p - q)
    assert answer == in_base(int(answer, base), base)
    assert kinds["bases"][0] <= base <= kinds["bases"][1]
    assert task.is_correct(prompt, answer)
    assert not task.is_correct(prompt, answer + "0")
    assert not task.is_correct(prompt, "0" + answer)
    assert set(prompt + answer) <= set(task.alphabet)
    assert len(set(task.alphabet)) == len(task.alphabet)
    assert task.group(prompt) == f"base {base}"
    if kinds["digits"] is not None:
        assert max(len(in_base(abs(number), base)) for number in (p, q)) <= kinds["digits"]
    twin = AddOrSubInBase(**{**kinds, "compact": not kinds["compact"]})
    other_prompt, other_answer = twin.sample(np.random.default_rng(seed))
    assert (read(other_prompt), other_answer) == ((base, p, operator, q), answer)
    assert task.is_correct(other_prompt, answer)


@given(st.integers(-(10**18), 10**18), st.integers(2, 36))
def test_numbers_are_shown_in_their_base(number, base):
    text = in_base(number, base)
    assert int(text, base) == number
    assert text == text.lower()
    assert re.fullmatch(r"0|-?[1-9a-z][0-9a-z]*", text)


def test_the_published_text():
    task = AddOrSubInBase()
    assert task.is_correct("In base 6, what is 12 - -5?\n", "21")
    assert task.is_correct("In base 16, what is -ff + 1?", "-fe")
    assert not task.is_correct("In base 16, what is -ff + 1?", "-FE")
    assert task.is_correct("6:12--5=", "21")
    assert any(" - -" in task.sample(np.random.default_rng(seed))[0] for seed in range(20))


def test_alphabet_is_no_larger_than_needed():
    assert AddOrSubInBase(digits=1, bases=(3, 5), compact=True).alphabet == "+-012345:="
    assert AddOrSubInBase(digits=1, bases=(2, 2), compact=True).alphabet == "+-012:="
    assert "g" not in AddOrSubInBase().alphabet


def test_bases_and_operations_are_equally_likely():
    rng = np.random.default_rng(0)
    task = AddOrSubInBase()
    drawn = [read(task.sample(rng)[0]) for _ in range(6000)]
    bases = Counter(base for base, *_ in drawn)
    assert sorted(bases) == list(range(2, 17))
    assert chisquare([bases[base] for base in sorted(bases)]).pvalue > 0.01
    assert chisquare(list(Counter(operator for _, _, operator, _ in drawn).values())).pvalue > 0.01
    assert chisquare(list(Counter(p > 0 for _, p, _, _ in drawn if p).values())).pvalue > 0.01


@given(st.floats(0, 18), st.integers(0, 2**32))
def test_entropy_is_split_whole_and_no_share_is_below_one(entropy, seed):
    first, second = split_entropy(entropy, np.random.default_rng(seed))
    assert min(first, second) >= 1
    if second > 1:
        assert first + second == pytest.approx(entropy)
    else:
        assert first + second >= entropy
    assert first + second <= max(2.0, entropy + 1)


def test_entropy_is_split_uniformly():
    rng = np.random.default_rng(0)
    shares = np.array([split_entropy(10.0, rng)[0] for _ in range(5000)])
    assert chisquare(np.histogram(shares, bins=[1, 1.0000001, *range(2, 11)])[0]).pvalue > 0.01


@pytest.mark.parametrize(("entropy", "largest"), [(0.0, 1), (1.0, 5), (1.2, 8), (2.0, 50)])
def test_operands_are_uniform_on_their_range(entropy, largest):
    rng = np.random.default_rng(0)
    counts = Counter(signed_integer(entropy, rng) for _ in range(100 * (2 * largest + 1)))
    assert sorted(counts) == list(range(-largest, largest + 1))
    assert chisquare(list(counts.values())).pvalue > 0.01


def expected_share_within(bound, operand, low, high):
    """P(|operand| <= bound) under the generator's rule, by integrating over the entropy and its split."""
    total = []
    for entropy in np.linspace(low, high, 41):
        for share in (np.arange(400) + 0.5) / 400 * entropy:
            first = max(1.0, share)
            largest = math.ceil(10 ** (first if operand == "p" else max(1.0, entropy - first)) / 2)
            total.append((2 * min(bound, largest) + 1) / (2 * largest + 1))
    return np.mean(total)


@pytest.mark.parametrize("entropy", [(3.0, 10.0), (8.0, 8.0), (3.0, 3.0 + 7 / 3)])
def test_operands_have_the_generators_distribution(entropy):
    rng = np.random.default_rng(0)
    task = AddOrSubInBase(entropy=entropy, bases=(10, 16))
    drawn = [read(task.sample(rng)[0]) for _ in range(3000)]
    for operand, most in (("p", entropy[1]), ("q", entropy[1] - 1)):
        sizes = np.array([abs(question["p q".index(operand) + 1]) for question in drawn])
        assert sizes.max() <= math.ceil(10**most / 2)
        for bound in (0, 3, 30, 1000, 30_000):
            expected = expected_share_within(bound, operand, *entropy)
            deviation = math.sqrt(expected * (1 - expected) / len(sizes))
            assert abs((sizes <= bound).mean() - expected) <= 3.5 * deviation + 0.002
    both = [math.log10(2 * abs(p) + 1) + math.log10(2 * abs(q) + 1) for _, p, _, q in drawn]
    assert max(both) <= entropy[1] + 1 + 0.3


def test_answers_too_long_for_the_data_set_are_dropped():
    rng = np.random.default_rng(0)
    task = AddOrSubInBase(bases=(2, 2), entropy=(10.0, 10.0))
    lengths = [len(task.sample(rng)[1]) for _ in range(500)]
    assert max(lengths) == MAX_ANSWER_LENGTH


def test_operands_of_at_most_so_many_digits_are_uniform():
    rng = np.random.default_rng(0)
    task = AddOrSubInBase(digits=2, bases=(3, 3), compact=True)
    drawn = [read(task.sample(rng)[0]) for _ in range(3400)]
    for operand in (1, 3):
        counts = Counter(question[operand] for question in drawn)
        assert sorted(counts) == list(range(-8, 9))
        assert chisquare(list(counts.values())).pvalue > 0.01


@given(options, st.integers(0, 2**32), st.floats(0, 1))
def test_mistakes_are_other_digits_of_the_base(kinds, seed, rate):
    task, rng = AddOrSubInBase(**kinds), np.random.default_rng(seed)
    prompt, answer = task.sample(rng)
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"[: read(prompt)[0]]
    mistakes = task.mistakes(prompt, answer, rate, rng)
    positions = [mistake.position for mistake in mistakes]
    assert positions == sorted(set(positions))
    for mistake in mistakes:
        assert len(mistake.text) == 1
        assert mistake.text in digits
        assert answer[mistake.position] not in ("-", mistake.text)
    assert task.mistakes(prompt, answer, 0.0, rng) == []
    assert len(task.mistakes(prompt, answer, 1.0, rng)) == len(answer.lstrip("-"))


def test_mistakes_come_at_their_rate_and_every_wrong_digit_is_as_likely():
    rng = np.random.default_rng(0)
    drawn = [m for _ in range(3000) for m in AddOrSubInBase().mistakes("4:-1+-2=", "-3", 0.4, rng)]
    counts = Counter(drawn)
    assert set(counts) == {TextMistake(1, digit) for digit in "012"}
    assert chisquare([3000 - len(drawn), *counts.values()], [1800, 400, 400, 400]).pvalue > 0.01


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"digits": 0}, "digits must be a whole number from 1 to 12"),
        ({"digits": 13}, "digits must be"),
        ({"digits": 2, "entropy": (8, 8)}, "set only one"),
        ({"bases": (1, 10)}, "a base must be a whole number from 2 to 36"),
        ({"bases": (2, 37)}, "a base must be"),
        ({"bases": (10, 2)}, "in that order"),
        ({"bases": 10}, "bases must be two numbers"),
        ({"entropy": (5, 3)}, "entropy must be a range within 0 to 18"),
        ({"entropy": (-1, 3)}, "entropy must be"),
        ({"entropy": (3, 19)}, "entropy must be"),
        ({"entropy": "310"}, "entropy must be two numbers"),
        ({"compact": "yes"}, "compact must be true or false"),
    ],
)
def test_bad_options(kinds, message):
    with pytest.raises(InputError, match=message):
        AddOrSubInBase(**kinds)


@pytest.mark.parametrize(
    "prompt", ["", "1+1=", "37:1+1=", "1:0+0=", "0:1+1=", "6:7+1=", "6:1*1=", "6:1_0+1=", "abac|ab="]
)
def test_foreign_prompts(prompt):
    with pytest.raises(InputError, match="not a prompt of the arithmetic task"):
        AddOrSubInBase().is_correct(prompt, "2")
    with pytest.raises(InputError, match="not a prompt of the arithmetic task"):
        AddOrSubInBase().mistakes(prompt, "2", 0.5, np.random.default_rng(0))
