"""Rollouts: exact distributions, certain ends, reproducible noise, and a model left as it was found."""

import numpy as np
import pytest
import torch
from rollout_models import (
    BKSP,
    CONFIGS,
    EOS,
    RESET,
    SPACE,
    VOCAB,
    favour,
    legal_log_probs,
    reference_log_probs,
    tiny_model,
)
from scipy.stats import chisquare

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, replay, states
from sequencematch.rollouts import Append, Delete, End, HFRolloutEngine, SamplingConfig

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 1, 2, 3, 4, 5], [2, 2]]


def content(rollouts):
    return [(rollout.trajectory, rollout.completion, rollout.finish_reason) for rollout in rollouts]


def appended(rollout, space=SPACE):
    """The (string, token) pairs at which the rollout appended, in order."""
    pairs = zip(states(rollout.trajectory, space), rollout.trajectory.actions.tolist(), strict=False)
    return [(string, action) for string, action in pairs if action not in space.by_token]


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_those_of_fresh_forward_passes(name):
    """Bias and temperature change what is drawn, not the reported probability of the policy."""
    model = tiny_model(name)
    config = SamplingConfig(max_completion_length=10, max_actions=30, backspace_logit_bias=1.0, temperature=1.3)
    rollouts = HFRolloutEngine(model, SPACE, batch_size=3).rollout(PROMPTS * 5, config, policy_version=7)
    assert len({action for rollout in rollouts for action in rollout.trajectory.actions.tolist()}) == VOCAB
    for rollout, prompt in zip(rollouts, PROMPTS * 5, strict=True):
        trajectory = rollout.trajectory
        assert trajectory.prompt_ids.tolist() == prompt
        assert (trajectory.source, trajectory.policy_version) == ("policy", 7)
        assert trajectory.terminated == (rollout.finish_reason == "eos")
        assert rollout.completion == replay(trajectory, SPACE).completion
        np.testing.assert_allclose(rollout.log_probs, reference_log_probs(model, trajectory, SPACE), atol=1e-4)


def enumerate_outcomes(model, prompt, space, config):
    """Every (actions, finish reason) with its probability, by the definitions, one forward pass per state."""
    outcomes: dict = {}

    def visit(actions, completion, probability):
        if actions and actions[-1] == space.eos_token_id:
            outcomes[actions, "eos"] = probability
        elif len(actions) == config.action_limit:
            outcomes[actions, "max_actions"] = probability
        else:
            for action, p in enumerate(legal_log_probs(model, (*prompt, *completion), len(completion), space).exp()):
                deletion = space.by_token.get(action)
                reached = probability * p.item()
                if reached == 0:
                    continue
                if deletion is not None:
                    visit((*actions, action), completion[: deletion.landing(len(completion))], reached)
                elif action != space.eos_token_id and len(completion) == config.max_completion_length:
                    cut = actions, "max_completion_length"
                    outcomes[cut] = outcomes.get(cut, 0.0) + reached
                else:
                    visit((*actions, action), (*completion, action), reached)

    visit((), (), 1.0)
    return outcomes


def test_whole_trajectories_have_their_enumerated_probabilities():
    model = tiny_model("mistral", sharpness=1.5)
    space = ActionSpace(5, EOS, (Deletion(3, 1), Deletion(4, ALL)))
    config = SamplingConfig(max_completion_length=2, max_actions=4, seed=5)
    outcomes = enumerate_outcomes(model, (1, 2), space, config)
    assert sum(outcomes.values()) == pytest.approx(1.0, abs=1e-5)
    n = 20_000
    rollouts = HFRolloutEngine(model, space, batch_size=5_000).rollout([[1, 2]] * n, config)
    seen: dict = dict.fromkeys(outcomes, 0)
    first: dict = {}
    for rollout in rollouts:
        actions = tuple(rollout.trajectory.actions.tolist())
        seen[actions, rollout.finish_reason] += 1
        first[actions[0]] = first.get(actions[0], 0) + 1
    p_first = legal_log_probs(model, (1, 2), 0, space).exp().double()
    expected = [n * p_first[action].item() for action in (0, 1, 2)]
    assert set(first) == {0, 1, 2}
    assert chisquare([first[a] for a in (0, 1, 2)], np.array(expected) * n / sum(expected)).pvalue > 1e-3
    common = [outcome for outcome, p in outcomes.items() if n * p >= 5]
    assert len(common) > 40
    counts = np.array([*(seen[o] for o in common), n - sum(seen[o] for o in common)], dtype=float)
    expected = np.array([*(n * outcomes[o] for o in common), n * (1 - sum(outcomes[o] for o in common))])
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_a_model_that_always_deletes_stays_inside_its_completion_and_ends():
    model = favour(tiny_model(), BKSP)
    config = SamplingConfig(max_completion_length=3, max_actions=25)
    for rollout in HFRolloutEngine(model, SPACE).rollout(PROMPTS, config):
        actions = rollout.trajectory.actions.tolist()
        assert actions[0] not in SPACE.by_token
        # `states` raises if a deletion reaches into the prompt.
        assert all(len(state) >= len(rollout.trajectory.prompt_ids) for state in states(rollout.trajectory, SPACE))
        assert rollout.finish_reason in ("eos", "max_actions")
        if rollout.finish_reason == "max_actions":
            assert len(actions) == 25
            assert not rollout.trajectory.terminated
    reset = HFRolloutEngine(favour(tiny_model(), RESET), SPACE).rollout([[1, 2]], config)[0]
    assert set(reset.trajectory.actions[1::2].tolist()) == {RESET}


def test_the_length_limit_cuts_without_the_action_that_exceeds_it():
    engine = HFRolloutEngine(favour(tiny_model(), 5), SPACE)
    *seen, end = engine.stream([[1]], SamplingConfig(max_completion_length=4))
    rollout = end.rollout
    assert rollout.finish_reason == "max_completion_length"
    assert rollout.completion == (5, 5, 5, 5)
    assert len(rollout.log_probs) == 4
    assert not rollout.trajectory.terminated
    assert seen == [Append(0, 5)] * 4


def test_deletions_are_still_taken_at_the_length_limit():
    model = favour(favour(tiny_model(), BKSP), EOS, -100.0)
    rollout = HFRolloutEngine(model, SPACE).rollout([[1, 2]], SamplingConfig(max_completion_length=1, max_actions=8))[0]
    assert rollout.finish_reason == "max_actions"
    assert rollout.trajectory.actions[1::2].tolist() == [BKSP] * 4


def test_exclude_makes_greedy_decoding_a_search_that_ends():
    model = favour(favour(tiny_model(), BKSP), EOS, -20.0)
    looping = SamplingConfig(temperature=0.0, max_completion_length=6, max_actions=500)
    for rollout in HFRolloutEngine(model, SPACE).rollout(PROMPTS, looping):
        assert rollout.finish_reason == "max_actions"
        assert len(set(appended(rollout))) == 1
    searching = SamplingConfig(temperature=0.0, max_completion_length=6, max_actions=500, retry="exclude")
    for rollout in HFRolloutEngine(model, SPACE).rollout(PROMPTS, searching):
        assert rollout.finish_reason == "eos"
        assert len(set(appended(rollout))) == len(appended(rollout))


def test_exclude_never_repeats_a_deleted_choice_when_sampling():
    config = SamplingConfig(
        max_completion_length=8, max_actions=80, retry="exclude", backspace_logit_bias=3.0, logit_bias={EOS: -3.0}
    )
    rollouts = HFRolloutEngine(tiny_model(), SPACE).rollout(PROMPTS * 5, config)
    assert any(np.isin(rollout.trajectory.actions, list(SPACE.by_token)).sum() > 5 for rollout in rollouts)
    for rollout in rollouts:
        path = list(states(rollout.trajectory, SPACE))
        barred = set()
        for step, action in enumerate(rollout.trajectory.actions.tolist()):
            assert (path[step], action) not in barred
            if action in SPACE.by_token:
                barred.add((path[step + 1], path[step][len(path[step + 1])]))


def test_no_legal_action_left_is_a_reason_to_end():
    """Deletion after deletion bars every token; with `<eos>` impossible too, nothing is left."""
    model = favour(favour(tiny_model(), EOS, -torch.inf), BKSP)
    config = SamplingConfig(temperature=0.0, max_completion_length=5, max_actions=500, retry="exclude")
    rollout = HFRolloutEngine(model, SPACE).rollout([[1, 2]], config)[0]
    assert rollout.finish_reason == "no_legal_action"
    assert rollout.completion == ()
    assert len(appended(rollout)) == VOCAB - 4


def test_greedy_takes_the_best_legal_action():
    model = tiny_model("qwen3")
    config = SamplingConfig(temperature=0.0, max_completion_length=6, max_actions=12)
    for rollout in HFRolloutEngine(model, SPACE).rollout(PROMPTS, config):
        prompt = len(rollout.trajectory.prompt_ids)
        steps = zip(states(rollout.trajectory, SPACE), rollout.trajectory.actions.tolist(), strict=False)
        for string, action in steps:
            assert legal_log_probs(model, string, len(string) - prompt, SPACE).argmax() == action


def test_deletions_can_be_forbidden_and_rationed():
    engine = HFRolloutEngine(tiny_model(), SPACE, batch_size=64)
    tokens = list(SPACE.by_token)
    for knobs, most in (({"allow_backspace": False}, 0), ({"max_deletions": 2, "backspace_logit_bias": 4.0}, 2)):
        rollouts = engine.rollout(PROMPTS * 8, SamplingConfig(max_completion_length=6, **knobs))
        assert max(np.isin(rollout.trajectory.actions, tokens).sum() for rollout in rollouts) == most


def test_the_noise_belongs_to_the_seed_and_the_prompts_index():
    model = tiny_model("gpt2")
    config = SamplingConfig(max_completion_length=8, seed=3)
    prompts = PROMPTS * 3
    reference = content(HFRolloutEngine(model, SPACE).rollout(prompts, config))
    for batch_size in (1, 5):
        assert content(HFRolloutEngine(model, SPACE, batch_size=batch_size).rollout(prompts, config)) == reference
    assert content(HFRolloutEngine(model, SPACE).rollout(prompts[:2], config)) == reference[:2]
    others = [[7, 7, 7, 7, 7], *prompts[1:]]
    assert content(HFRolloutEngine(model, SPACE).rollout(others, config))[1:] == reference[1:]
    for seed in (4, None):
        other = SamplingConfig(max_completion_length=8, seed=seed)
        assert content(HFRolloutEngine(model, SPACE).rollout(prompts, other)) != reference


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_the_model_and_the_global_random_state_are_left_as_found():
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    rollouts = HFRolloutEngine(model, SPACE).rollout(PROMPTS, SamplingConfig(max_completion_length=8))
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is False
    assert model.is_gradient_checkpointing
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    model.eval()
    for rollout in rollouts:
        np.testing.assert_allclose(rollout.log_probs, reference_log_probs(model, rollout.trajectory, SPACE), atol=1e-4)
    model.train()
    model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()


def test_the_mode_is_restored_after_an_error():
    model = favour(tiny_model(), 3, float("nan")).train()
    with pytest.raises(InputError, match="finite"):
        HFRolloutEngine(model, SPACE).rollout([[1]], SamplingConfig(max_completion_length=4))
    assert model.training


def test_a_stream_tells_what_happens_and_ends_in_the_rollouts():
    engine = HFRolloutEngine(tiny_model(), SPACE, batch_size=3)
    config = SamplingConfig(max_completion_length=6)
    strings: dict = {index: [] for index in range(len(PROMPTS))}
    actions: dict = {index: [] for index in strings}
    ends: dict = {}
    for event in engine.stream(PROMPTS, config):
        assert event.index not in ends
        match event:
            case Append(index, token):
                strings[index].append(token)
                actions[index].append(token)
            case Delete(index, token, count):
                assert count == len(strings[index]) - SPACE.next_length(token, len(strings[index])) > 0
                del strings[index][-count:]
                actions[index].append(token)
            case End(index, rollout):
                ends[index] = rollout
                assert tuple(strings[index]) == rollout.completion
                assert actions[index] + [EOS] * rollout.trajectory.terminated == rollout.trajectory.actions.tolist()
    rollouts = engine.rollout(PROMPTS, config)
    assert content([ends[index] for index in strings]) == content(rollouts)
    assert any(isinstance(event, Delete) for event in engine.stream(PROMPTS * 3, config))


def test_an_output_wider_than_the_action_space_is_cut_and_a_narrower_one_refused():
    model = tiny_model()
    narrow = ActionSpace(6, EOS, (Deletion(5, 1),))
    for rollout in HFRolloutEngine(model, narrow).rollout([[1, 2]] * 9, SamplingConfig(max_completion_length=6)):
        assert rollout.trajectory.actions.max() < 6
        np.testing.assert_allclose(rollout.log_probs, reference_log_probs(model, rollout.trajectory, narrow), atol=1e-4)
    with pytest.raises(InputError, match="output logits"):
        HFRolloutEngine(model, ActionSpace(VOCAB + 1, EOS)).rollout([[1]], SamplingConfig(max_completion_length=6))


def test_bad_prompts_are_refused_and_no_prompts_are_no_rollouts():
    engine = HFRolloutEngine(tiny_model(), SPACE)
    config = SamplingConfig(max_completion_length=60)
    assert engine.rollout([], config) == []
    for prompts, message in (([[]], "at least one token"), ([[1, VOCAB]], "out of range"), ([[1] * 5], "64 positions")):
        with pytest.raises(InputError, match=message):
            engine.rollout(prompts, config)
    with pytest.raises(InputError, match="batch_size"):
        HFRolloutEngine(tiny_model(), SPACE, batch_size=0)


def test_the_longest_admissible_prompt_fits():
    engine = HFRolloutEngine(favour(tiny_model("gpt2"), 5), SPACE)
    rollout = engine.rollout([[1] * 59], SamplingConfig(max_completion_length=5))[0]
    assert rollout.finish_reason == "max_completion_length"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # raised between peft and transformers
def test_adapters_are_sampled_too():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(), config)
    rollouts = HFRolloutEngine(model, SPACE).rollout(PROMPTS, SamplingConfig(max_completion_length=6))
    model.eval()
    for rollout in rollouts:
        np.testing.assert_allclose(rollout.log_probs, reference_log_probs(model, rollout.trajectory, SPACE), atol=1e-4)
