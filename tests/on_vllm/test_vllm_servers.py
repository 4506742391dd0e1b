"""Our loop around vLLM's API server: the same trajectories, weights that are taken over, a server that is killed."""

import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import requests
from rollout_models import reference_log_probs
from rollout_outcomes import PROMPT, SPACE, assert_follows, enumerate_outcomes
from vllm_models import saved_model

from sequencematch.rollouts import SamplingConfig
from sequencematch.rollouts.vllm import VLLMRolloutEngine, VLLMServers

DELETING = SamplingConfig(max_completion_length=6, max_actions=30, backspace_logit_bias=1.0, seed=3)


class Process:
    """vLLM's API server."""

    def __init__(self, folder, port):
        self.url = f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        self.command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--block-size", "32"]
        self.command += [
            "--skip-tokenizer-init",
            "--logprobs-mode",
            "raw_logprobs",
            "--enable-prefix-caching",
            "--enable-scale-out",
        ]

    def start(self):
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self):
        for _ in range(600):
            assert self.process.poll() is None, "vLLM's server ended"
            try:
                if requests.get(self.url + "/health", timeout=1).ok:
                    return
            except requests.RequestException:
                time.sleep(0.2)
        raise AssertionError("vLLM's server did not start")

    def kill(self):
        below = psutil.Process(self.process.pid).children(recursive=True)
        for process in (self.process, *below):  # its engine would outlive it
            process.kill()
        self.process.wait()
        psutil.wait_procs(below, timeout=10)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = saved_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Process(folder, port)
    server.start()
    server.wait()
    yield server, model
    server.kill()


def engine_on(server, **options):
    return VLLMRolloutEngine(VLLMServers(server.url, concurrency=32, **options), SPACE)


def test_trajectories_have_their_enumerated_probabilities(served):
    server, model = served
    config = SamplingConfig(max_completion_length=2, max_actions=4, seed=5, backspace_logit_bias=1.0)
    rollouts = engine_on(server).rollout([PROMPT] * 1_500, config)
    assert assert_follows(rollouts, enumerate_outcomes(model, config)) >= 5
    for rollout in rollouts[:20]:
        expected = reference_log_probs(model, rollout.trajectory, SPACE)
        np.testing.assert_allclose(rollout.log_probs, expected, atol=1e-5)


def test_weights_are_taken_over_and_a_server_that_is_killed_gets_them_again(served, tmp_path):
    server, _ = served
    other = saved_model(tmp_path, seed=1)
    engine = engine_on(server, patience=300.0)  # a busy machine starts it anew in minutes
    engine.load(str(tmp_path), 3)
    before = engine.rollout([PROMPT] * 100, DELETING, policy_version=3)
    for rollout in before[:10]:
        expected = reference_log_probs(other, rollout.trajectory, SPACE)
        np.testing.assert_allclose(rollout.log_probs, expected, atol=1e-5)

    def restart():
        time.sleep(0.3)
        server.kill()
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    during = engine.rollout([PROMPT] * 400, DELETING, policy_version=3)
    thread.join()
    server.wait()
    assert requests.get(server.url + "/weight_info", timeout=5).json()["weight_version"] == "3"
    assert [rollout.trajectory for rollout in during[:100]] == [rollout.trajectory for rollout in before]
