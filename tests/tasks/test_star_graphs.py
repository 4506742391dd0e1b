from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from sequencematch.errors import InputError
from sequencematch.tasks import StarGraphs, TextMistake


@st.composite
def tasks(draw):
    degree, length = draw(st.integers(2, 6)), draw(st.integers(1, 6))
    return StarGraphs(degree, length, nodes=draw(st.integers(degree * length + 1, 62)))


@given(tasks(), st.integers(0, 2**32))
def test_the_texts_show_a_star_and_its_path(task, seed):
    prompt, path = task.sample(np.random.default_rng(seed))
    listing, query = prompt.split("|")
    edges = [(listing[i], listing[i + 1]) for i in range(0, len(listing), 2)]
    children = [child for _, child in edges]
    start, goal, end = query
    assert end == "="
    assert len(edges) == task.degree * task.length
    assert len({start, *children}) == len(edges) + 1
    assert [parent for parent, _ in edges].count(start) == task.degree
    assert set(zip(start + path, path, strict=False)) <= set(edges)
    assert len(path) == task.length
    assert path[-1] == goal
    assert set(prompt + path) <= set(task.alphabet)
    assert len(set(task.alphabet)) == len(task.alphabet)
    assert task.is_correct(prompt, path)
    assert task.group(prompt) == f"degree {task.degree}, length {task.length}"


def test_only_the_whole_path_is_correct():
    task, prompt = StarGraphs(), "enhfnbvwehev|ew="
    assert task.is_correct(prompt, "vw")
    for wrong in ("", "v", "w", "nb", "hf", "vw ", "vwvw", "evw"):
        assert not task.is_correct(prompt, wrong)


@given(tasks(), st.integers(0, 2**32))
def test_a_mistake_is_a_whole_wrong_arm(task, seed):
    rng = np.random.default_rng(seed)
    prompt, path = task.sample(rng)
    (mistake,) = task.mistakes(prompt, path, 1.0, rng)
    listing, query = prompt.split("|")
    edges = {listing[i : i + 2] for i in range(0, len(listing), 2)}
    walk = query[0] + mistake.text
    assert mistake.position == 0
    assert len(mistake.text) == task.length
    assert not set(mistake.text) & set(path)
    assert all(walk[i : i + 2] in edges for i in range(task.length))
    assert task.mistakes(prompt, path, 0.0, rng) == []


def test_mistakes_come_at_their_rate_and_from_every_wrong_arm():
    rng = np.random.default_rng(0)
    drawn = [StarGraphs().mistakes("enhfnbvwehev|ew=", "vw", 0.3, rng) for _ in range(3000)]
    counts = [drawn.count(mistakes) for mistakes in ([], [TextMistake(0, "nb")], [TextMistake(0, "hf")])]
    assert sum(counts) == 3000
    assert chisquare(counts, [2100, 450, 450]).pvalue > 0.01


def test_every_arm_is_the_goal_and_every_edge_comes_first_equally_often():
    rng = np.random.default_rng(0)
    task = StarGraphs(degree=4, length=1, nodes=5)
    position = [0] * 4
    for _ in range(2000):
        prompt, path = task.sample(rng)
        position[prompt[1:8:2].index(path)] += 1
    assert chisquare(position).pvalue > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 1}, "degree must be a whole number of at least 2"),
        ({"length": 0}, "length must be a whole number of at least 1"),
        ({"degree": 2.5}, "degree must be"),
        ({"degree": [3, 2]}, "degree must be a whole number of at least 3, not 2"),
        ({"length": [1, 2, 3]}, "the smallest and the largest"),
        ({"degree": [2, 5], "length": [2, 6]}, "set nodes to at least 31"),
        ({"degree": 5, "length": 6}, "set nodes to at least 31"),
        ({"degree": 8, "length": 8, "nodes": 62}, "need 65 nodes; set a smaller degree or length"),
        ({"goal": "ab"}, "goal must be true or false, not 'ab'"),
        ({"nodes": 63}, "nodes must be a whole number from 1 to 62"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        StarGraphs(**options)


@pytest.mark.parametrize("prompt", ["", "abac|ab", "ab|ab=", "abac|ad=", "abacx|ab=", "abba|ab=", "abac|ca=", "6:1+1="])
def test_foreign_prompts(prompt):
    with pytest.raises(InputError, match="not a prompt of the star task"):
        StarGraphs().is_correct(prompt, "b")


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_bad_rates(rate):
    with pytest.raises(InputError, match="between 0 and 1"):
        StarGraphs().mistakes("abac|ab=", "b", rate, np.random.default_rng(0))


@given(tasks(), st.integers(0, 2**32))
def test_without_a_goal_the_stars_are_the_same_and_every_arm_is_right(task, seed):
    named = task.sample(np.random.default_rng(seed))
    goalless = replace(task, goal=False)
    prompt, path = goalless.sample(np.random.default_rng(seed))
    listing, query = prompt.split("|")
    assert (listing, path) == (named[0].split("|")[0], named[1])
    assert query[0] == query[1]
    (wrong,) = task.mistakes(*named, 1.0, np.random.default_rng(seed))
    assert goalless.is_correct(prompt, path)
    assert goalless.is_correct(prompt, wrong.text)
    assert not goalless.is_correct(prompt, path[:-1])
    assert goalless.mistakes(prompt, path, 1.0, np.random.default_rng(seed)) == []
    assert goalless.group(prompt) == task.group(named[0])


def test_sizes_are_drawn_equally_often():
    task = StarGraphs(degree=(2, 4), length=[1, 3], nodes=13)
    rng = np.random.default_rng(0)
    groups = Counter(task.group(task.sample(rng)[0]) for _ in range(1800))
    assert set(groups) == {f"degree {degree}, length {length}" for degree in (2, 3, 4) for length in (1, 2, 3)}
    assert min(groups.values()) > 140  # 200 each, with a standard deviation of 13
