import numpy as np
import pytest
import torch

from sequencematch import InputError
from sequencematch.data import Example
from sequencematch.evaluation.planted import planted_detection, wrong_and_right
from sequencematch.evaluation.statistics import ratio_interval
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory
from sequencematch.models import evaluate_states, mask_illegal
from sequencematch.noise import Mistake, ModelNoise, NoNoise, UniformNoise, demonstrate
from sequencematch.objectives import bc_loss
from sequencematch.tree import collate_trajectories

EOS, BKSP, TRIPLE, RESET = 0, 8, 9, 10
SPACES = {
    "backspace": ActionSpace(11, EOS, (Deletion(BKSP, 1),)),
    "all": ActionSpace(11, EOS, (Deletion(BKSP, 1), Deletion(TRIPLE, 3), Deletion(RESET, ALL))),
    "reset": ActionSpace(11, EOS, (Deletion(RESET, ALL),)),
}


def example(prompt, completion):
    return Example(tuple(prompt), tuple(completion), "", "")


EXAMPLES = [
    example([4, 5], [1, 2, 3, 6, 7, EOS]),
    example([4, 5], [1, 2, EOS]),
    example([6], [EOS]),
    example([1, 2, 3], [4, 4, 5, 1]),  # cut
    example([4, 5], [1, 3, 3, 3, EOS]),
    example([7], []),
]


class Given:
    """Plants what it is told, example by example."""

    def __init__(self, *mistakes):
        self.left = list(mistakes)

    def mistakes(self, examples, rng):
        return [self.left.pop(0) for _ in examples]


@torch.no_grad()
def probability(model, space, example, completion):
    """pi(deletion|s) from a forward on the string alone."""
    logits = model(input_ids=torch.tensor([[*example.prompt_ids, *completion]])).logits[0, -1]
    policy = mask_illegal(logits, torch.tensor(len(completion)), space).softmax(-1)
    return float(policy[list(space.by_token)].sum())


def by_definition(model, space, example, mistakes):
    """pi(deletion|s) at the wrong states and at the right ones, each a string that counts once."""
    expert = example.completion_ids
    wrong = set()
    for mistake in mistakes:
        completion = (*expert[: mistake.position], *mistake.tokens)
        while len(completion) > mistake.position:
            wrong.add(completion)
            action = space.plan_deletion(len(completion), mistake.position)[0][0]
            completion = completion[: space.next_length(action, len(completion))]
    right = [expert[:length] for length in range(1, len(expert))]
    return [[probability(model, space, example, completion) for completion in kind] for kind in (sorted(wrong), right)]


@pytest.mark.parametrize("run", [1, 4])
@pytest.mark.parametrize("name", SPACES)
def test_detection_is_that_of_each_string_alone(tiny_model, name, run):
    space, model = SPACES[name], tiny_model()
    source = UniformNoise(space, 0.8, run)
    found = planted_detection(model, space, EXAMPLES, source, np.random.default_rng(0), batch_size=4)
    rng = np.random.default_rng(0)
    mistakes = [*source.mistakes(EXAMPLES[:4], rng), *source.mistakes(EXAMPLES[4:], rng)]
    kinds = zip(*(by_definition(model, space, *pair) for pair in zip(EXAMPLES, mistakes, strict=True)), strict=True)
    for kind, (values, rate, likely) in zip(
        kinds,
        (
            (found.wrong, found.sampled.recall, found.likely.recall),
            (found.right, found.sampled.false_alarm, found.likely.false_alarm),
        ),
        strict=True,
    ):
        counts = [len(one) for one in kind]
        assert values == sum(counts) > 5
        expected = ratio_interval([sum(one) for one in kind], counts)
        assert (rate.estimate, rate.low, rate.high) == pytest.approx(
            (expected.estimate, expected.low, expected.high), abs=1e-5
        )
        assert likely == ratio_interval([sum(value > 0.5 for value in one) for one in kind], counts)


def test_the_area_is_the_share_of_pairs_in_order(tiny_model):
    space, model = SPACES["all"], tiny_model("gpt2")
    source = UniformNoise(space, 1.0, 2)
    found = planted_detection(model, space, EXAMPLES, source, np.random.default_rng(0))
    mistakes = source.mistakes(EXAMPLES, np.random.default_rng(0))
    pairs = [by_definition(model, space, *pair) for pair in zip(EXAMPLES, mistakes, strict=True)]
    wrong, right = (np.concatenate(kind) for kind in zip(*pairs, strict=True))
    # Examples of one prompt meet in the same states, which differ by rounding at most.
    difference = np.subtract.outer(wrong, right)
    order = np.where(abs(difference) < 1e-6, 0.5, difference > 0)
    assert found.auroc == pytest.approx(order.mean(), abs=0.01)
    assert abs(found.auroc - 0.5) > 0.05


@pytest.fixture
def constant(tiny_model):
    """A model with the same logits everywhere, an output bias: `constant(share)` deletes with that probability."""

    def make(share):
        model = tiny_model("phi")
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.zero_()
            model.lm_head.bias[BKSP] = np.log(10 * share / (1 - share))
        return model

    return make


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_model_that_deletes_regardless(constant, share):
    space = SPACES["backspace"]
    source = UniformNoise(space, 0.5)
    found = planted_detection(constant(share), space, EXAMPLES, source, np.random.default_rng(0))
    assert found.sampled.recall.estimate == pytest.approx(share, abs=1e-5)
    assert found.sampled.false_alarm.estimate == pytest.approx(share, abs=1e-5)
    assert found.likely.recall.estimate == found.likely.false_alarm.estimate == (share > 0.5)
    assert found.auroc == 0.5
    # A deletion says nothing: precision is the error rate.
    for rate in (0.1, found.planted_rate):
        assert found.sampled.precision(rate) == pytest.approx(rate)
    # Where it never deletes, there is no precision.
    expected = 0.2 if share > 0.5 else np.nan
    assert found.likely.precision(0.2) == pytest.approx(expected, nan_ok=True)


def test_precision_is_the_share_of_deletions_that_are_right(tiny_model):
    space, model = SPACES["all"], tiny_model("gpt2")
    with torch.no_grad():
        model.lm_head.weight[[BKSP, TRIPLE, RESET]] *= 2
    source = UniformNoise(space, 0.8)
    found = planted_detection(model, space, EXAMPLES, source, np.random.default_rng(0))
    hits, alarms = (
        round(share.estimate * count)
        for share, count in ((found.likely.recall, found.wrong), (found.likely.false_alarm, found.right))
    )
    assert hits > 0
    assert alarms > 0
    assert found.likely.precision(found.planted_rate) == pytest.approx(hits / (hits + alarms))
    assert found.likely.precision(0) == 0
    assert found.likely.precision(1) == 1
    with pytest.raises(InputError, match="from 0 to 1"):
        found.sampled.precision(1.1)


@pytest.mark.parametrize("name", ["backspace", "reset"])
def test_a_model_that_has_learned_to_delete(tiny_model, name):
    """The right texts alternate between two tokens, of which the prompt is one; the wrong ones do not."""
    space = SPACES[name]
    examples = [example([1], [2, 1, 2, 1, 2, EOS]), example([2], [1, 2, 1, 2, 1, EOS])] * 4
    source = UniformNoise(ActionSpace(8, EOS), 0.4)
    model = tiny_model("llama").train()
    before = planted_detection(model, space, examples, source, np.random.default_rng(1))
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=1e-2), np.random.default_rng(0)
    for _ in range(50):
        mistakes = source.mistakes(examples, rng)
        batch = collate_trajectories(
            [demonstrate(*pair, space, 0.0) for pair in zip(examples, mistakes, strict=True)], space
        )
        loss, _ = bc_loss(evaluate_states(model, batch, space))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = planted_detection(model, space, examples, source, np.random.default_rng(1))
    assert before.auroc < 0.9
    assert found.auroc > 0.95
    assert found.sampled.recall.estimate > 0.8
    assert found.sampled.false_alarm.high < 0.1
    assert found.likely.recall.estimate > 0.8
    assert found.likely.precision(0.1) > found.sampled.precision(0.1) > 0.5


def test_where_one_deletion_takes_all_back_only_the_end_of_a_mistake_is_wrong():
    """And on the way back over several deletions, every state is."""
    single = example([4], [1, 2, 3, EOS])
    mistake = Mistake(1, (5, 6, 7))
    for name, lengths in (("backspace", [4, 3, 2]), ("reset", [4]), ("all", [4])):
        space = SPACES[name]
        policy = Trajectory(np.array([4]), np.array([1, 5, next(iter(space.by_token)), EOS]), None, True, "policy", 0)
        batch = collate_trajectories([demonstrate(single, [mistake], space), policy], space)
        wrong, right = wrong_and_right(batch, space)
        assert batch.completion_length[batch.state[wrong]].tolist() == lengths
        assert set(batch.completion_length[batch.state[right]].tolist()) == {1, 2, 3}
        assert not batch.is_policy[batch.trajectory[wrong | right]].any()


def test_a_deletion_that_lands_on_the_experts_way_is_not_of_a_wrong_state():
    """With threes only, the way back from six tokens to four leads over three, which are the expert's."""
    space = ActionSpace(11, EOS, (Deletion(TRIPLE, 3),))
    single = example([4], [1, 2, 3, 5, 6, EOS])
    trajectory = demonstrate(single, [Mistake(4, (7, 7))], space)
    assert trajectory.actions.tolist()[:8] == [1, 2, 3, 5, 7, 7, TRIPLE, TRIPLE]
    batch = collate_trajectories([trajectory], space)
    wrong, right = wrong_and_right(batch, space)
    assert batch.completion_length[batch.state[wrong]].tolist() == [6]
    assert set(batch.completion_length[batch.state[right]].tolist()) == {1, 2, 3, 4, 5}


def test_a_state_counts_once(tiny_model):
    """However often the demonstration comes by: after a reset the expert starts again."""
    space = SPACES["reset"]
    single = example([4], [1, 2, 3, EOS])
    mistakes = [Mistake(2, (5,)), Mistake(2, (5,)), Mistake(3, (6,)), Mistake(3, (7,))]
    found = planted_detection(tiny_model(), space, [single], Given(mistakes), np.random.default_rng(0))
    assert (found.wrong, found.right) == (3, 3)
    assert found.planted_rate == 0.5


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing(tiny_model, batch_size):
    space, model = SPACES["all"], tiny_model()
    whole, found = (
        planted_detection(model, space, EXAMPLES, UniformNoise(space, 0.8, 2), np.random.default_rng(0), size)
        for size in (4, batch_size)
    )
    assert (found.wrong, found.right) == (whole.wrong, whole.right)
    assert found.sampled.recall.estimate == pytest.approx(whole.sampled.recall.estimate, abs=1e-5)
    assert found.sampled.false_alarm.estimate == pytest.approx(whole.sampled.false_alarm.estimate, abs=1e-5)


def test_the_models_own_mistakes_and_its_mode(tiny_model):
    space = SPACES["all"]
    model = tiny_model("gpt2", embd_pdrop=0.5, resid_pdrop=0.5).train()
    source = ModelNoise(model, space, 1.0, 2)
    one, other = (planted_detection(model, space, EXAMPLES, source, np.random.default_rng(0)) for _ in range(2))
    assert one == other
    assert one.wrong > 10
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("examples", "source", "message"),
    [
        (EXAMPLES, NoNoise(), "no mistake was planted"),
        ([], NoNoise(), "no mistake was planted"),
        ([example([1], [EOS])], Given([Mistake(0, (3,))]), "no completion has a state after a right token"),
        ([example([1], [2, EOS])], Given([Mistake(0, (2, 3))]), "begins with the expert's own token"),
        ([example([1], [2, BKSP, 3, EOS])], Given([Mistake(0, (3,))]), "has a deletion in it already"),
        ([example([1] * 60, [2] * 4)], Given([Mistake(3, (3, 3))]), "do not fit the model's 64 positions"),
    ],
)
def test_what_cannot_be_measured(tiny_model, examples, source, message):
    with pytest.raises(InputError, match=message):
        planted_detection(tiny_model(), SPACES["backspace"], examples, source, np.random.default_rng(0))


def test_a_model_without_deletions(tiny_model):
    space = ActionSpace(11, EOS)
    with pytest.raises(InputError, match="no deletion action leads"):
        planted_detection(tiny_model(), space, EXAMPLES, UniformNoise(space, 1.0), np.random.default_rng(0))


def test_a_batch_of_nothing(tiny_model):
    source = UniformNoise(SPACES["all"], 1.0)
    with pytest.raises(InputError, match="at least 1, not 0"):
        planted_detection(tiny_model(), SPACES["all"], EXAMPLES, source, np.random.default_rng(0), 0)


def test_a_broken_model(tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    source = UniformNoise(SPACES["all"], 1.0)
    with pytest.raises(InputError, match="not finite"):
        planted_detection(model, SPACES["all"], EXAMPLES, source, np.random.default_rng(0))
