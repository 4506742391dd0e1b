"""Unlikelihood training against loops over full logits, and by hand."""

import math
from dataclasses import replace

import pytest
import torch

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, states
from sequencematch.models import candidates as candidates_module
from sequencematch.models import evaluate_states, layout_of
from sequencematch.models.candidates import context_candidates, evaluate_candidates
from sequencematch.objectives import Steps, bc_loss, unlikelihood_loss, unlikelihood_loss_reference
from sequencematch.tree import collate_trajectories

VOCAB, EOS, BKSP, RESET = 11, 0, 8, 10
PLAIN = ActionSpace(VOCAB, EOS)
DELETING = ActionSpace(VOCAB, EOS, (Deletion(BKSP, 1), Deletion(RESET, ALL)))
WALKS = [
    ((4, 5), (4, 5, 4, 4, 5, EOS)),
    ((4, 5), (4, 5, 6, 4, 7, 7, EOS)),
    ((4, 5), (1,)),  # cut by a limit
    ((3,), (3, 3, 3, EOS)),
    ((EOS,), (2, 1, 2, EOS)),  # a text that begins with <eos>
    ((BKSP, 2), (1, 2, EOS)),  # a deletion's name in the prompt
]


def trajectories(walks=WALKS):
    return [Trajectory(prompt, actions, terminated=actions[-1] == EOS) for prompt, actions in walks]


def collated(model, space, walks=WALKS):
    return collate_trajectories(trajectories(walks), space, layout_of(model))


def log_probs_alone(model, prompt, actions, space):
    """float [N, V]: log pi in every state, from a forward pass of its own for each."""
    rows = []
    for done in range(len(actions)):
        ids = torch.tensor([[*prompt, *actions[:done]]])
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        illegal = [action for action in range(VOCAB) if not space.is_legal(action, done)]
        rows.append(logits.index_fill(0, torch.tensor(illegal, dtype=torch.long), -torch.inf).log_softmax(-1))
    return torch.stack(rows)


def reference(model, space, walks=WALKS, **options):
    found = [log_probs_alone(model, prompt, actions, space) for prompt, actions in walks]
    never = (space.eos_token_id, *space.by_token)
    return unlikelihood_loss_reference(
        found, [prompt for prompt, _ in walks], [actions for _, actions in walks], never=never, **options
    )


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def steps(log_probs, trajectory=None, weight=None, v=3.0):
    """Actions of one trajectory, or of several, with these log-probabilities."""
    n = len(log_probs)
    values = torch.full((n,), v)
    owner = torch.zeros(n, dtype=torch.long) if trajectory is None else torch.tensor(trajectory)
    count = int(owner.max()) + 1
    return Steps(
        q=values + torch.tensor(log_probs),
        v=values,
        v_next=values,
        t=torch.arange(n),
        weight=torch.ones(n) if weight is None else torch.tensor(weight),
        trajectory=owner,
        length=torch.bincount(owner),
        terminal_v=torch.zeros(count),
        terminated=torch.ones(count, dtype=torch.bool),
    )


@pytest.mark.parametrize(("weight", "denominator"), [(1.0, None), (2.5, 11.0)])
@pytest.mark.parametrize("space", [PLAIN, DELETING], ids=["plain", "deleting"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_value_and_gradient_equal_the_reference(family, space, weight, denominator, tiny_model):
    model = tiny_model(family).double()
    expert, candidates = evaluate_candidates(model, collated(model, space), space)
    options = {"weight": weight, "denominator": denominator}
    fast, _ = unlikelihood_loss(expert, candidates, **options)
    slow = reference(model, space, **options)
    torch.testing.assert_close(fast, slow.double(), rtol=1e-7, atol=1e-7)
    for found, expected in zip(gradients(model, fast), gradients(model, slow), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_single_precision_is_as_good(tiny_model):
    model = tiny_model("llama")
    fast, _ = unlikelihood_loss(*evaluate_candidates(model, collated(model, PLAIN), PLAIN), weight=1.0)
    slow = reference(model, PLAIN, weight=1.0)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients(model, fast), gradients(model, slow), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_candidates_of_a_walk_by_hand(tiny_model):
    model = tiny_model("llama")
    step, token = context_candidates(
        collated(model, DELETING, [((4, 5), (4, 6, 6, EOS)), ((8, 0), (1, EOS))]), DELETING
    )
    found = [sorted(token[step == s].tolist()) for s in range(6)]
    assert found == [[5], [4, 5], [4, 5], [4, 5, 6], [], [1]]


@pytest.mark.parametrize("pairs", [1, 100, 1 << 22])
@pytest.mark.parametrize("space", [PLAIN, DELETING], ids=["plain", "deleting"])
def test_candidates_are_the_tokens_of_the_state(space, pairs, tiny_model, monkeypatch):
    monkeypatch.setattr(candidates_module, "PAIRS", pairs)
    model = tiny_model("llama")
    step, token = context_candidates(collated(model, space), space)
    expected = [
        (before, candidate)
        for before, (string, action) in enumerate(
            (string, action)
            for trajectory in trajectories()
            for string, action in zip(states(trajectory, space), trajectory.actions.tolist(), strict=False)
        )
        for candidate in sorted({*string} - {action, EOS, *space.by_token})
    ]
    assert list(zip(step.tolist(), token.tolist(), strict=True)) == expected


def test_the_steps_are_those_of_evaluate_states(tiny_model):
    model = tiny_model("llama")
    batch = collated(model, DELETING)
    expected = evaluate_states(model, batch, DELETING, "zero")
    taken, candidates = evaluate_candidates(model, batch, DELETING, "zero")
    for name in vars(expected):
        torch.testing.assert_close(getattr(taken, name), getattr(expected, name))
    step, token = context_candidates(batch, DELETING)
    torch.testing.assert_close(candidates.v, expected.v[step])
    torch.testing.assert_close(candidates.t, batch.t[step])
    torch.testing.assert_close(candidates.trajectory, batch.trajectory[step])
    rows = [log_probs_alone(model, prompt, actions, DELETING) for prompt, actions in WALKS]
    torch.testing.assert_close(candidates.q - candidates.v, torch.cat(rows)[step, token], rtol=1e-4, atol=1e-5)


def test_without_a_weight_it_is_maximum_likelihood(tiny_model):
    model = tiny_model("llama")
    expert, candidates = evaluate_candidates(model, collated(model, PLAIN), PLAIN)
    for denominator in (None, 5.0):
        loss, components = unlikelihood_loss(expert, candidates, weight=0.0, denominator=denominator)
        plain, parts = bc_loss(expert, denominator=denominator)
        assert torch.equal(loss, plain)
        assert torch.equal(components["bc"], parts["bc"])


def test_a_loss_by_hand():
    """pi = 1/2 and 1/5 for what was done; beside the second, candidates of 1/4 and 3/10."""
    expert = steps([math.log(0.5), math.log(0.2)])
    candidates = steps([math.log(0.25), math.log(0.3)])
    loss, components = unlikelihood_loss(expert, candidates, weight=2.0)
    penalty = -math.log(0.75) - math.log(0.7)
    assert loss.item() == pytest.approx(math.log(2) + math.log(5) + 2 * penalty, rel=1e-6)
    assert components["bc"].item() == pytest.approx((math.log(2) + math.log(5)) / 2, rel=1e-6)
    assert components["unlikelihood"].item() == pytest.approx(penalty / 2, rel=1e-6)


def test_weights_of_actions_count_for_their_candidates():
    expert = steps([-1.0, -2.0], [0, 1], weight=[1.0, 0.5])
    candidates = steps([math.log(0.25), math.log(0.25)], [0, 1], weight=[1.0, 0.5])
    loss, components = unlikelihood_loss(expert, candidates, weight=1.0)
    penalty = -1.5 * math.log(0.75)
    assert loss.item() == pytest.approx((2.0 + penalty) / 2, rel=1e-6)
    assert components["unlikelihood"].item() == pytest.approx(penalty / 1.5, rel=1e-6)


def test_no_candidates_and_no_steps():
    empty = steps([0.0]).subset(torch.tensor([False]))
    expert = steps([-1.0])
    assert unlikelihood_loss(expert, empty, weight=1.0)[0].item() == pytest.approx(1.0)
    loss, components = unlikelihood_loss(empty, empty, weight=1.0)
    assert (loss.item(), components["unlikelihood"].item()) == (0, 0)


def test_a_candidate_that_is_certain_has_a_finite_penalty():
    q = torch.tensor([30.0, 0.0, -torch.inf], requires_grad=True)
    candidates = replace(steps([0.0] * 3), q=q, v=torch.tensor([29.99999, 1e-6, 2.0]))
    loss, _ = unlikelihood_loss(steps([-1.0]), candidates, weight=1.0)
    assert loss.item() == pytest.approx(1.0 - 2 * math.log(1e-5), rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, q)
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 1.01e5


def test_half_precision_is_computed_in_single():
    def halved(rows):
        return replace(rows, q=rows.q.bfloat16(), v=rows.v.bfloat16())

    expert, candidates = steps([-1.0, -3.0]), steps([-5.0, -6.0], v=2.0)
    loss, _ = unlikelihood_loss(halved(expert), halved(candidates), weight=1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, unlikelihood_loss(expert, candidates, weight=1.0)[0])


@pytest.mark.filterwarnings("ignore:.*CPU autocast.*")
def test_under_autocast_the_loss_is_in_single_precision(tiny_model):
    model = tiny_model("llama")
    batch = collated(model, PLAIN)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = unlikelihood_loss(*evaluate_candidates(model, batch, PLAIN), weight=1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference(model, PLAIN, weight=1.0), rtol=0.05, atol=0.0)


def test_batches_that_share_a_count_add_up(tiny_model):
    model = tiny_model("llama")
    whole, *parts = (
        unlikelihood_loss(
            *evaluate_candidates(model, collated(model, PLAIN, walks), PLAIN), weight=1.0, denominator=25.0
        )[0]
        for walks in (WALKS, WALKS[:2], WALKS[2:])
    )
    torch.testing.assert_close(whole, sum(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_the_weight_is_not_negative(weight):
    with pytest.raises(InputError, match="weight of the unlikelihood term"):
        unlikelihood_loss(steps([-1.0]), steps([-1.0]), weight=weight)
