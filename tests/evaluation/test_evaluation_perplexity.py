import json
import math

import numpy as np
import pytest
import torch

from sequencematch import InputError
from sequencematch.data import Example
from sequencematch.evaluation.perplexity import data_perplexity
from sequencematch.evaluation.statistics import ratio_interval
from sequencematch.mdp import ActionSpace
from sequencematch.models import evaluate_states, tree_logits
from sequencematch.noise import demonstrate
from sequencematch.tree import collate_trajectories

EOS, BKSP = 0, 8


def example(prompt, completion):
    return Example(tuple(prompt), tuple(completion), "", "")


EXAMPLES = [
    example([4, 5], [1, 2, 3, 6, 7, EOS]),
    example([4, 5], [1, 2, EOS]),
    example([6], [EOS]),
    example([1, 2, 3], [4, 4, 5, 1]),  # cut
    example([7, 1], []),
    example([4, 5], [1, 3, 3, 3, EOS]),
]


@torch.no_grad()
def log_probabilities(model, example, space):
    """For each completion token alone: log pi(a|s), the same with deletions forbidden, and pi(deletion|s)."""
    found = []
    for position, action in enumerate(example.completion_ids):
        string = [*example.prompt_ids, *example.completion_ids[:position]]
        logits = model(input_ids=torch.tensor([string], device=model.device)).logits[0, -1].double()
        illegal = [token for token in space.by_token if not space.is_legal(token, position)]
        logits[illegal] = -torch.inf
        deletes = logits.softmax(-1)[list(space.by_token)].sum()
        kept = logits.clone()
        kept[list(space.by_token)] = -torch.inf
        found.append((logits.log_softmax(-1)[action], kept.log_softmax(-1)[action], deletes))
    return np.array(found).reshape(-1, 3)


@pytest.fixture
def eager(tiny_model):
    """A model that deletes often: more than half of the mass at some states."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.lm_head.weight[[8, 9, 10]] *= 2
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_losses_are_those_of_each_state_alone(tiny_model, space, family):
    model = tiny_model(family)
    found = data_perplexity(model, space, EXAMPLES, batch_size=4)
    alone = [log_probabilities(model, one, space) for one in EXAMPLES]
    assert found["nll"] == pytest.approx([-one[:, 0].sum() for one in alone], abs=2e-4)
    assert found["nll_no_deletion"] == pytest.approx([-one[:, 1].sum() for one in alone], abs=2e-4)
    assert found["lengths"] == [6, 3, 1, 4, 0, 5]
    assert found["tokens"] == 19
    means = -np.concatenate(alone).mean(0)
    assert found["perplexity"] == pytest.approx(math.exp(means[0]), rel=1e-4)
    assert found["perplexity_no_deletion"] == pytest.approx(math.exp(means[1]), rel=1e-4)


def test_losses_are_those_of_the_tree(eager, space):
    """At the prompt no deletion is legal, after one token all but that of three."""
    single = [example([4, 5], [1, EOS])]
    batch = collate_trajectories([demonstrate(single[0], [], space)], space)
    logits = tree_logits(eager, batch).detach().double()
    first, second = batch.state
    allowed = [token for token in range(11) if token not in space.by_token]
    expected = logits[first, allowed].logsumexp(-1) - logits[first, 1]
    expected += logits[second, [*allowed, BKSP, 10]].logsumexp(-1) - logits[second, EOS]
    assert data_perplexity(eager, space, single)["nll"] == pytest.approx([float(expected)], abs=1e-5)


def test_the_ratio_of_the_two_is_what_deletions_take(eager, space):
    found = data_perplexity(eager, space, EXAMPLES)
    deletes = np.concatenate([log_probabilities(eager, one, space)[:, 2] for one in EXAMPLES])
    assert deletes.max() > 0.5
    difference = math.log(found["perplexity"]) - math.log(found["perplexity_no_deletion"])
    assert difference == pytest.approx(-np.log1p(-deletes).mean(), rel=1e-4)
    with torch.no_grad():
        batch = collate_trajectories([demonstrate(one, [], space) for one in EXAMPLES], space)
        steps = evaluate_states(eager, batch, space)
    assert difference == pytest.approx(-float((1 - steps.deletes).log().mean()), rel=1e-4)
    assert difference > 0.1


def test_without_deletions_both_are_the_same(tiny_model):
    model, space = tiny_model(), ActionSpace(11, EOS)
    found = data_perplexity(model, space, EXAMPLES)
    assert found["nll"] == found["nll_no_deletion"]
    assert found["perplexity"] == found["perplexity_no_deletion"]
    assert found["intervals"]["perplexity"] == found["intervals"]["perplexity_no_deletion"]
    with torch.no_grad():
        row = torch.tensor([[4, 5, 1, 2, 3, 6, 7, EOS]])
        log_pi = model(input_ids=row).logits.log_softmax(-1)[0, 1:-1].gather(1, row[0, 2:, None])
    assert found["nll"][0] == pytest.approx(-float(log_pi.sum()), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing(eager, space, batch_size):
    whole, found = (data_perplexity(eager, space, EXAMPLES, size) for size in (4, batch_size))
    for name in ("nll", "nll_no_deletion"):
        assert found[name] == pytest.approx(whole[name], abs=1e-4)


def test_intervals_are_over_examples(eager, space):
    found = data_perplexity(eager, space, EXAMPLES)
    for name, losses in (("perplexity", "nll"), ("perplexity_no_deletion", "nll_no_deletion")):
        interval = ratio_interval(found[losses], found["lengths"])
        assert found[name] == pytest.approx(math.exp(interval.estimate))
        assert found["intervals"][name] == pytest.approx([math.exp(interval.low), math.exp(interval.high)])
        assert found["intervals"][name][0] < found[name] < found["intervals"][name][1]


def test_the_result_is_plain_data(eager, space):
    found = data_perplexity(eager, space, EXAMPLES)
    assert json.loads(json.dumps(found)) == found


def test_evaluation_mode_and_no_gradient(tiny_model, space):
    calm = tiny_model("gpt2")
    model = tiny_model("gpt2", embd_pdrop=0.5, resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    found = data_perplexity(model, space, EXAMPLES)
    assert found["nll"] == pytest.approx(data_perplexity(calm, space, EXAMPLES)["nll"], abs=1e-4)
    assert model.training
    assert not model.transformer.h[0].training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("scale", [6.9, 30.0, 80.0])
def test_a_model_that_almost_surely_deletes(tiny_model, space, scale):
    """Up to where 1 - pi(deletion|s) is 0 in float32: the rest is still uniform over the eight that do not delete."""
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[4, 5, 1]])).last_hidden_state[0, -1]
        model.lm_head.weight.zero_()
        model.lm_head.weight[BKSP] = scale * hidden / hidden.square().sum()
    single = [example([4, 5], [1, 2])]
    found = data_perplexity(model, space, single)
    one, two = log_probabilities(model, single[0], space)
    assert two[2] > 0.98
    assert found["nll"] == pytest.approx([-one[0] - two[0]], rel=1e-5)
    assert found["perplexity_no_deletion"] == pytest.approx(8, rel=1e-5)


def test_a_hopeless_model(tiny_model, space):
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight *= 1e5
    assert data_perplexity(model, space, EXAMPLES)["perplexity"] == math.inf
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(InputError, match="not finite; its weights may have diverged"):
        data_perplexity(model, space, EXAMPLES)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no completion"),
        ([example([1], [])], "no completion"),
        ([EXAMPLES[0], example([1], [2, BKSP, EOS])], "example 1 has a deletion"),
        ([example([1] * 60, [2] * 10)], "do not fit the model's 64 positions"),
    ],
)
def test_what_has_no_perplexity(tiny_model, space, examples, message):
    with pytest.raises(InputError, match=message):
        data_perplexity(tiny_model(), space, examples)
