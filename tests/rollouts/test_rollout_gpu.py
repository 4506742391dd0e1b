"""On a CUDA device: captured steps give what a fresh forward gives."""

import numpy as np
import pytest
import torch
from rollout_models import CONFIGS, SPACE, legal_log_probs, tiny_model

from sequencematch.mdp import states
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig
from sequencematch.rollouts.graphs import StepGraphs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 1, 2, 3, 4, 5], [2, 2]] * 5


@pytest.mark.parametrize("name", CONFIGS)
def test_captured_steps_see_exactly_their_strings(name, monkeypatch):
    captured = []
    capture = StepGraphs._capture
    monkeypatch.setattr(StepGraphs, "_capture", lambda self, used: captured.append(used) or capture(self, used))
    model = tiny_model(name)
    reference = tiny_model(name)
    config = SamplingConfig(max_completion_length=40, max_actions=150, backspace_logit_bias=0.5, temperature=2.0)
    rollouts = HFRolloutEngine(model.cuda(), SPACE, batch_size=8).rollout(PROMPTS, config)
    assert len(captured) >= 2
    assert sum(len(rollout.trajectory) for rollout in rollouts) > 100
    for rollout in rollouts:
        prompt = len(rollout.trajectory.prompt_ids)
        found = [
            legal_log_probs(reference, string, len(string) - prompt, SPACE)[action].item()
            for string, action in zip(
                states(rollout.trajectory, SPACE), rollout.trajectory.actions.tolist(), strict=False
            )
        ]
        np.testing.assert_allclose(rollout.log_probs, found, atol=2e-3)


def test_captured_steps_draw_what_others_draw(monkeypatch):
    config = SamplingConfig(max_completion_length=40, retry="exclude", backspace_logit_bias=1.0)
    captured = HFRolloutEngine(tiny_model().cuda(), SPACE, batch_size=8).rollout(PROMPTS, config)
    monkeypatch.setattr(StepGraphs, "suit", staticmethod(lambda core, device: False))
    plain = HFRolloutEngine(tiny_model().cuda(), SPACE, batch_size=8).rollout(PROMPTS, config)
    assert [rollout.trajectory for rollout in captured] == [rollout.trajectory for rollout in plain]
