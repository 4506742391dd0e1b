"""What the replay buffer keeps, drops and draws."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sequencematch.errors import InputError
from sequencematch.mdp import Trajectory
from sequencematch.rollouts import ReplayBuffer
from sequencematch.rollouts.buffer import merged_state


def walk(tag: int, version: int = 0) -> Trajectory:
    return Trajectory(
        [1, 2][: 1 + tag % 2],
        [tag, 7],
        action_weights=[0.5, 1.0],
        terminated=tag % 3 == 0,
        source="policy",
        policy_version=version,
    )


def tags(trajectories) -> list[int]:
    return [int(trajectory.actions[0]) for trajectory in trajectories]


def held(buffer: ReplayBuffer) -> list[int]:
    return sorted(tags(buffer.sample(len(buffer))))


def test_first_in_first_out_within_a_version_and_wrap_around():
    buffer = ReplayBuffer(4)
    buffer.extend(walk(tag) for tag in range(3))
    assert held(buffer) == [0, 1, 2]
    buffer.extend(walk(tag) for tag in range(3, 6))
    assert held(buffer) == [2, 3, 4, 5]
    buffer.extend(walk(tag) for tag in range(6, 16))
    assert held(buffer) == [12, 13, 14, 15]


def test_the_stalest_go_first():
    buffer = ReplayBuffer(3)
    buffer.extend([walk(0, version=5), walk(1, version=2), walk(2, version=5)])
    buffer.extend([walk(3, version=4)])
    assert held(buffer) == [0, 2, 3]
    buffer.extend([walk(4, version=1)])
    assert held(buffer) == [0, 2, 3]


def test_evict_and_staleness():
    buffer = ReplayBuffer(9, max_staleness=3)
    assert buffer.staleness(4) == 0.0
    buffer.extend(walk(version, version) for version in range(6))
    assert buffer.staleness(6) == pytest.approx(3.5)
    assert buffer.evict(6) == 3
    assert held(buffer) == [3, 4, 5]
    unlimited = ReplayBuffer(9)
    unlimited.extend([walk(0)])
    assert unlimited.evict(10**6) == 0


def of_prompt(prompt: int, tag: int) -> Trajectory:
    return Trajectory([prompt], [tag], terminated=False, source="policy", policy_version=0)


def test_sampling_is_without_replacement_as_long_as_it_lasts():
    buffer = ReplayBuffer(5, seed=3)
    buffer.extend(of_prompt(tag, tag) for tag in range(5))
    assert sorted(tags(buffer.sample(5))) == [0, 1, 2, 3, 4]
    assert len(set(tags(buffer.sample(3)))) == 3
    drawn = tags(buffer.sample(12))
    assert len(drawn) == 12
    assert set(drawn) == {0, 1, 2, 3, 4}
    assert buffer.sample(0) == []
    counts = np.bincount([tag for _ in range(2000) for tag in tags(buffer.sample(2))], minlength=5)
    assert counts.min() > 700


def test_sampling_takes_all_that_a_prompt_has():
    buffer = ReplayBuffer(100)
    for generation in range(3):
        buffer.extend([of_prompt(prompt, 10 * prompt + generation) for prompt in range(5)])
    counts = np.zeros(5)
    for _ in range(2000):
        drawn = tags(buffer.sample(6))
        prompts = [tag // 10 for tag in drawn]
        assert len(set(drawn)) == 6
        assert sorted(prompts.count(prompt) for prompt in set(prompts)) == [3, 3]
        counts[list(set(prompts))] += 1
    assert chisquare(counts).pvalue > 1e-3
    assert len(set(tags(buffer.sample(4)))) == 4
    assert len(buffer.sample(40)) == 40


def test_of_a_prompt_that_does_not_fit_any_trajectory_may_come():
    buffer = ReplayBuffer(9)
    buffer.extend([of_prompt(1, tag) for tag in range(4)])
    counts = np.bincount([tag for _ in range(2000) for tag in tags(buffer.sample(1))], minlength=4)
    assert chisquare(counts).pvalue > 1e-3


def test_what_comes_and_goes_between_two_samples_counts():
    buffer = ReplayBuffer(4, max_staleness=1)
    buffer.extend([walk(0, version=0), walk(1, version=1)])
    assert held(buffer) == [0, 1]
    buffer.extend([walk(2, version=2)])
    assert held(buffer) == [0, 1, 2]
    buffer.evict(2)
    assert held(buffer) == [1, 2]
    buffer.load_state_dict(ReplayBuffer(4).state_dict())
    with pytest.raises(InputError, match="empty"):
        buffer.sample(1)


def test_sampling_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    buffer = ReplayBuffer(2)
    buffer.extend([walk(0), walk(1)])
    buffer.sample(2)
    assert (np.random.get_state()[1] == before).all()


def test_resuming_from_a_checkpoint_gives_the_same_samples(tmp_path):
    buffer = ReplayBuffer(6, seed=1)
    buffer.extend(walk(tag, version=tag) for tag in range(8))
    buffer.sample(3)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    resumed = ReplayBuffer(6, seed=99)
    resumed.extend([walk(50)])
    resumed.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    assert [resumed.sample(4) for _ in range(3)] == [buffer.sample(4) for _ in range(3)]
    smaller = ReplayBuffer(2)
    smaller.load_state_dict(buffer.state_dict())
    assert held(smaller) == [6, 7]


def test_a_buffer_takes_over_several():
    parts = [ReplayBuffer(6, seed=seed) for seed in (1, 2)]
    parts[0].extend([walk(0, version=4), walk(1, version=1)])
    parts[1].extend([walk(2, version=3)])
    generator = ReplayBuffer(6, seed=7).state_dict()["generator"]
    buffer = ReplayBuffer(2)
    buffer.load_state_dict(merged_state([part.state_dict() for part in parts], generator))
    assert held(buffer) == [0, 2]
    alike = ReplayBuffer(2, seed=7)
    alike.extend([walk(0, version=4), walk(2, version=3)])
    alike.sample(2)
    assert tags(buffer.sample(1)) == tags(alike.sample(1))
    buffer.load_state_dict(merged_state([], generator))
    assert len(buffer) == 0


def test_an_empty_buffer_has_a_state_too():
    buffer = ReplayBuffer(2)
    buffer.load_state_dict(ReplayBuffer(2).state_dict())
    assert len(buffer) == 0


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="capacity"):
        ReplayBuffer(0)
    with pytest.raises(InputError, match="max_staleness"):
        ReplayBuffer(1, max_staleness=-1)
    buffer = ReplayBuffer(1)
    with pytest.raises(InputError, match="empty"):
        buffer.sample(1)
    with pytest.raises(InputError, match="-1"):
        buffer.sample(-1)
    with pytest.raises(InputError, match="policy"):
        buffer.extend([Trajectory([1], [2])])
    assert len(buffer) == 0
