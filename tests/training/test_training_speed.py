"""What is logged of a run's speed."""

import time

import pytest
from training_runs import ROLLOUTS, new_trainer

from sequencematch.training.speed import PARTS, Speed


def test_nested_parts_have_their_own_time(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    speed = Speed()  # 0
    with speed.measure("data"), speed.measure("rollout"):  # 1, 3
        pass  # 10, 12
    speed.count(nodes=30, actions=10)
    speed.count(nodes=10)
    assert speed.totals == {"nodes": 40, "actions": 10}
    found = speed.report()  # 20
    assert speed.totals["nodes"] == 40  # of the whole run
    assert found == {
        "speed/nodes_per_second": 2.0,
        "speed/actions_per_second": 0.5,
        "speed/data_share": 4 / 20,
        "speed/rollout_share": 7 / 20,
        "speed/forward_backward_share": 0.0,
    }


def test_a_part_that_fails_is_closed():
    speed = Speed()
    with pytest.raises(RuntimeError), speed.measure("data"):
        raise RuntimeError
    with speed.measure("rollout"):
        pass
    assert speed.report()["speed/data_share"] >= 0


def test_a_run_logs_its_speed(tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path, **ROLLOUTS, gradient_accumulation_steps=2)
    counted = []
    monkeypatch.setattr(trainer.batches.speed, "count", lambda **things: counted.append(things))
    trainer.train()
    trained = [things for things in counted if "nodes" in things]
    assert len(trained) == 8  # four steps of two micro-batches
    assert all(things["nodes"] > things["actions"] > 0 for things in trained)
    sampled = [things["rollout_actions"] for things in counted if "rollout_actions" in things]
    assert len(sampled) == 2  # rollouts come every second step
    assert min(sampled) > 0
    monkeypatch.undo()
    trainer = new_trainer(tmp_path, **ROLLOUTS)
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        shares = [entry[f"speed/{part}_share"] for part in PARTS]
        assert all(share >= 0 for share in shares)
        assert sum(shares) <= 1
        assert entry["speed/nodes_per_second"] > 0
        assert entry["speed/actions_per_second"] > 0
    first, second, third, fourth = (entry["speed/rollout_share"] for entry in trainer.state.log_history[:4])
    assert min(first, third) > 0  # rollouts come every second step
    assert second == fourth == 0
