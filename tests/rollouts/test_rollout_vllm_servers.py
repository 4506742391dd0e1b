"""Replicas of a server: shared work and failures, over real HTTP, with the rules of vLLM behind it."""

import threading
import time

import pytest
from rollout_models import tiny_model
from rollout_outcomes import PROMPT, SPACE
from vllm_rules import Rules, Server

from sequencematch import InputError
from sequencematch.rollouts import SamplingConfig
from sequencematch.rollouts.vllm import VLLMRolloutEngine, VLLMServers, servers

CONFIG = SamplingConfig(max_completion_length=4, backspace_logit_bias=1.0, seed=3)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def expected(model):
    return trajectories(VLLMRolloutEngine(Rules(model), SPACE).rollout([PROMPT] * 40, CONFIG))


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setattr(servers, "PAUSES", (0.01, 0.05, 0.2))
    monkeypatch.setattr(servers, "PATIENCE", 2.0)
    monkeypatch.setattr(servers, "REST", 0.2)


@pytest.fixture
def start(model):
    running = []

    def start(**options):
        running.append(Server(model, **options))
        return running[-1]

    yield start
    for server in running:
        server.stop()


def trajectories(rollouts):
    return [(rollout.trajectory, rollout.log_probs.tolist()) for rollout in rollouts]


def sampled(urls, count=40, **options):
    backend = VLLMServers(urls, concurrency=4, **options)
    return trajectories(VLLMRolloutEngine(backend, SPACE).rollout([PROMPT] * count, CONFIG))


def test_a_server_gives_what_an_engine_gives(start, expected):
    assert sampled(start().url) == expected


def test_replicas_share_the_work(start, expected):
    one, other = start(), start()
    assert sampled([one.url, other.url]) == expected
    assert min(one.answered, other.answered) > 10


def test_addresses_in_one_string(start, expected):
    one, other = start(), start()
    assert sampled(f"{one.url}/, {other.url},") == expected
    assert min(one.answered, other.answered) > 10


def test_a_server_that_fails_now_and_then_loses_and_doubles_nothing(start, expected):
    server = start(fail=lambda number: 500 if number % 7 == 0 else None)
    assert sampled(server.url) == expected


def test_a_replica_that_always_fails_is_passed_over(start, expected):
    bad, good = start(fail=lambda number: 503), start()
    assert sampled([bad.url, good.url]) == expected
    assert bad.answered == 0
    assert bad.number < good.number


def test_a_replica_lost_on_the_way_is_replaced(start, model, expected):
    lost, kept = start(), start()
    threading.Thread(target=lambda: (time.sleep(0.05), lost.stop()), daemon=True).start()
    assert sampled([lost.url, kept.url]) == expected


def test_a_server_that_comes_back_is_waited_for(start, model, expected):
    server = start()
    backend = VLLMServers(server.url, concurrency=4)
    server.stop()

    def restart():
        time.sleep(0.2)
        start(port=server.port)

    threading.Thread(target=restart, daemon=True).start()
    assert trajectories(VLLMRolloutEngine(backend, SPACE).rollout([PROMPT] * 40, CONFIG)) == expected


def test_weights_wait_for_a_server_that_comes_back_after_rollouts(start, model, tmp_path):
    model.save_pretrained(tmp_path)
    server = start()
    backend = VLLMServers(server.url, concurrency=4)
    VLLMRolloutEngine(backend, SPACE).rollout([PROMPT], CONFIG)
    server.stop()
    restarted = []

    def restart():
        time.sleep(0.2)
        restarted.append(start(port=server.port))

    threading.Thread(target=restart, daemon=True).start()
    backend.load(str(tmp_path), "1")
    assert restarted[0].version == "1"


def test_no_server_is_left(start):
    server = start(fail=lambda number: 502 if number > 5 else None)
    with pytest.raises(InputError, match=r"no vLLM server answers \(http://127.*502.*check that they run"):
        sampled(server.url)


def test_patience_is_what_it_is_told_to_be():
    start = time.monotonic()
    with pytest.raises(InputError, match="no vLLM server answers"):
        VLLMServers("http://127.0.0.1:9", patience=0.3)
    assert 0.3 < time.monotonic() - start < 1.5


def test_no_server_at_all():
    with pytest.raises(InputError, match="no vLLM server answers"):
        VLLMServers("http://127.0.0.1:9")
    for nothing in ([], "", " , "):
        with pytest.raises(InputError, match="at least one vLLM server"):
            VLLMServers(nothing)


def test_a_request_that_is_refused_is_not_tried_again(start):
    server = start(fail=lambda number: 400)
    with pytest.raises(InputError, match="refuses /inference/v1/generate: as it was told"):
        sampled(server.url, count=1)
    assert server.number == 1


def test_a_server_that_hangs_is_given_up(start, monkeypatch):
    server = start(fail=lambda number: time.sleep(1.0) if number > 2 else None)
    with pytest.raises(InputError, match="timed out"):
        sampled(server.url, timeout=0.05)


def test_the_model_by_its_name(start):
    url = start().url
    assert VLLMServers(url).model == VLLMServers(url, model="tiny").model == "tiny"
    assert VLLMServers(url).max_length == 64
    with pytest.raises(InputError, match="has the models tiny, not 'other'"):
        VLLMServers(url, model="other")


def test_weights_are_loaded_by_every_replica_and_labelled(start, model, expected, tmp_path):
    other = tiny_model("gpt2")
    for hook in list(other.get_output_embeddings()._forward_hooks):
        del other.get_output_embeddings()._forward_hooks[hook]
    other.save_pretrained(tmp_path)
    replicas = [start(), start()]
    engine = VLLMRolloutEngine(VLLMServers([replica.url for replica in replicas], concurrency=4), SPACE)
    assert trajectories(engine.rollout([PROMPT] * 40, CONFIG)) == expected
    engine.load(str(tmp_path), 3)
    assert [replica.version for replica in replicas] == ["3", "3"]
    found = engine.rollout([PROMPT] * 40, CONFIG, policy_version=3)
    assert trajectories(found) == trajectories(
        VLLMRolloutEngine(Rules(other), SPACE).rollout([PROMPT] * 40, CONFIG, policy_version=3)
    )
    with pytest.raises(InputError, match=r"has the weights of optimizer step 3, .* of step 4; load the weights first"):
        engine.rollout([PROMPT], CONFIG, policy_version=4)


def test_a_replica_that_was_started_anew_takes_over_the_weights_first(start, model, tmp_path):
    model = tiny_model()
    for hook in list(model.get_output_embeddings()._forward_hooks):
        del model.get_output_embeddings()._forward_hooks[hook]
    model.save_pretrained(tmp_path)
    server = start()
    engine = VLLMRolloutEngine(VLLMServers(server.url, concurrency=4), SPACE)
    engine.load(str(tmp_path), 5)
    before = trajectories(engine.rollout([PROMPT] * 20, CONFIG, policy_version=5))
    server.stop()
    again = start(port=server.port)
    assert again.version == "default"
    assert trajectories(engine.rollout([PROMPT] * 20, CONFIG, policy_version=5)) == before
    assert again.version == "5"


def test_answers_of_other_weights_are_refused(start, model, tmp_path):
    backend = Rules(model)
    backend.load = lambda folder, version: None
    engine = VLLMRolloutEngine(backend, SPACE)
    engine.load(str(tmp_path), 2)
    with pytest.raises(InputError, match="answered with the weights of no known version, not of step 2"):
        engine.rollout([PROMPT], CONFIG)
