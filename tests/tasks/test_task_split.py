from dataclasses import dataclass

import numpy as np
import pytest

from sequencematch.errors import InputError
from sequencematch.tasks import TASKS, AddOrSubInBase, StarGraphs, get_task, split

TINY = StarGraphs(degree=2, length=1, nodes=3)  # 3 starts, 2 orders of the edges, 2 goals: 12 prompts


def test_splits_have_no_prompt_in_common_and_no_prompt_twice():
    data = split(AddOrSubInBase(digits=1, bases=(2, 4), compact=True), 80, 20, seed=0)
    prompts = [*data["train"]["prompt"], *data["test"]["prompt"]]
    assert len(data["train"]) == 80
    assert len(data["test"]) == 20
    assert len(set(prompts)) == 100
    assert data["train"].column_names == ["prompt", "completion"]


@pytest.mark.parametrize("task", [StarGraphs(), AddOrSubInBase(), AddOrSubInBase(digits=2, compact=True)])
def test_completions_are_right_and_the_seed_decides(task):
    data = split(task, 20, 10, seed=3)
    for part in data.values():
        assert all(task.is_correct(row["prompt"], row["completion"]) for row in part)
    again, other = split(task, 20, 10, seed=3), split(task, 20, 10, seed=4)
    assert {name: part.to_list() for name, part in data.items()} == {k: part.to_list() for k, part in again.items()}
    assert data["test"].to_list() != other["test"].to_list()


def test_test_split_does_not_depend_on_train_size():
    small, large = split(StarGraphs(), 5, 30, seed=1), split(StarGraphs(), 50, 30, seed=1)
    assert small["test"].to_list() == large["test"].to_list()
    assert small["train"].to_list() == large["train"].to_list()[:5]


def test_a_task_can_be_used_up_but_not_exceeded():
    data = split(TINY, 6, 6, seed=0)
    assert len({*data["train"]["prompt"], *data["test"]["prompt"]}) == 12
    with pytest.raises(InputError, match="only 12 different prompts where 13"):
        split(TINY, 6, 7, seed=0)


def test_an_empty_split_keeps_its_columns():
    data = split(TINY, 0, 2, seed=0)
    assert data["train"].features == data["test"].features
    assert len(data["train"]) == 0


@pytest.mark.parametrize("sizes", [(-1, 1, 0), (1, -1, 0), (1, 1, -1), (1.5, 1, 0), (True, 1, 0)])
def test_bad_sizes(sizes):
    with pytest.raises(InputError, match="whole number of at least 0"):
        split(TINY, *sizes)


def test_get_task():
    assert get_task("star", degree=4) == StarGraphs(degree=4)
    assert get_task("arithmetic", digits=2, bases=[6, 10], compact=True) == AddOrSubInBase(2, (6, 10), compact=True)
    assert {name: get_task(name).name for name in TASKS} == {"star": "star", "arithmetic": "arithmetic"}


def test_get_task_says_what_there_is():
    with pytest.raises(InputError, match=r"no task 'chess'; choose one of arithmetic, star"):
        get_task("chess")
    with pytest.raises(InputError, match=r"no option 'arms'; its options are degree, length, nodes"):
        get_task("star", arms=3)


def test_a_task_of_ones_own_can_be_split():
    @dataclass(frozen=True)
    class Echo:
        name: str = "echo"
        alphabet: str = "ab"

        def sample(self, rng: np.random.Generator) -> tuple[str, str]:
            text = "ab"[rng.integers(2)]
            return text, text

    data = split(Echo(), 1, 1, seed=0)
    assert {*data["train"]["prompt"], *data["test"]["prompt"]} == {"a", "b"}
