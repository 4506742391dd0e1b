"""Uniform, task and rollout noise: what is drawn, where and how often."""

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from sequencematch.data import Example, tokenize_dataset
from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, replay
from sequencematch.noise import Mistake, ModelNoise, NoNoise, RolloutNoise, TaskNoise, UniformNoise, demonstrate
from sequencematch.noise.rollout import departure
from sequencematch.rollouts import Rollout, SamplingConfig
from sequencematch.tasks import AddOrSubInBase, StarGraphs, build_tokenizer, split

EXPERT = (1, 2, 3, 0)
EXAMPLES = [Example((4, 5), EXPERT, "", "")] * 1000


class FakeEngine:
    """Answers with set actions, over and over, and remembers what it was asked."""

    space = ActionSpace(20, 0, (Deletion(18, 1), Deletion(19, ALL)))

    def __init__(self, *completions):
        self.completions = completions
        self.calls = []

    def rollout(self, prompts, config, *, policy_version=0):
        self.calls.append((list(prompts), config))
        chosen = [self.completions[i % len(self.completions)] for i in range(len(prompts))]
        return [self.answer(prompt, tokens) for prompt, tokens in zip(prompts, chosen, strict=True)]

    def answer(self, prompt, tokens):
        trajectory = Trajectory(prompt, [*tokens, 0], source="policy", policy_version=0)
        return Rollout(trajectory, np.zeros(len(tokens) + 1), tuple(tokens), "eos")


def by_position(found):
    """For each expert step the runs that were made there."""
    runs = {position: [] for position in range(len(EXPERT))}
    for mistakes in found:
        positions = [mistake.position for mistake in mistakes]
        assert positions == sorted(set(positions))
        for mistake in mistakes:
            runs[mistake.position].append(mistake.tokens)
    return runs


@pytest.mark.parametrize("rate", [0.03, 0.5, 1.0])
def test_uniform_rate_and_places(space, rate):
    runs = by_position(UniformNoise(space, rate).mistakes(EXAMPLES, np.random.default_rng(0)))
    for made in runs.values():
        assert binomtest(len(made), len(EXAMPLES), rate).pvalue > 1e-3
        assert all(len(run) == 1 for run in made)


def test_uniform_first_tokens_are_any_but_the_right_one(space):
    runs = by_position(UniformNoise(space, 1.0, max_run=3).mistakes(EXAMPLES, np.random.default_rng(1)))
    for position, made in runs.items():
        others = [token for token in range(1, 8) if token != EXPERT[position]]
        counts = np.bincount([run[0] for run in made], minlength=space.vocab_size)
        assert counts.sum() == counts[others].sum() == len(EXAMPLES)
        assert chisquare(counts[others]).pvalue > 1e-3
        later = np.bincount([token for run in made for token in run[1:]], minlength=space.vocab_size)
        assert later.sum() == later[1:8].sum()
        assert chisquare(later[1:8]).pvalue > 1e-3


@pytest.mark.parametrize("max_run", [1, 2, 5])
def test_uniform_run_lengths(space, max_run):
    runs = by_position(UniformNoise(space, 0.7, max_run).mistakes(EXAMPLES, np.random.default_rng(2)))
    lengths = np.bincount([len(run) for made in runs.values() for run in made], minlength=max_run + 1)
    assert len(lengths) == max_run + 1
    assert lengths[0] == 0
    assert chisquare(lengths[1:]).pvalue > 1e-3 or max_run == 1


def test_uniform_is_reproducible(space):
    noise = UniformNoise(space, 0.5, 3)
    one, same, other = (noise.mistakes(EXAMPLES, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def texts_of(task, count=60):
    rows = split(task, count, 0, seed=0)["train"]
    tokenizer = build_tokenizer(task.alphabet)
    return tokenizer, [Example.from_row(row) for row in tokenize_dataset(rows, tokenizer)]


@pytest.mark.parametrize("task", [StarGraphs(), AddOrSubInBase(), AddOrSubInBase(digits=2, compact=True)])
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_task_noise_is_the_tasks_own(task, rate):
    tokenizer, examples = texts_of(task)
    found = TaskNoise(task, tokenizer, rate).mistakes(examples, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    expected = [task.mistakes(example.prompt, example.completion, rate, rng) for example in examples]
    assert [[(mistake.position, tokenizer.decode(mistake.tokens)) for mistake in mistakes] for mistakes in found] == [
        [(mistake.position, mistake.text) for mistake in mistakes] for mistakes in expected
    ]
    assert bool(sum(map(len, found))) == (rate > 0)
    assert TaskNoise(task, tokenizer, rate).mistakes([], np.random.default_rng(0)) == []


def test_task_noise_needs_a_token_for_each_character():
    """With merged tokens a mistake in the middle of one has no place to go."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    task = AddOrSubInBase(digits=3, bases=(10, 10), compact=True)
    digits = "0123456789"
    pairs = [(a, b) for a in digits for b in digits]
    vocabulary = {token: i for i, token in enumerate(["<eos>", *task.alphabet, *(a + b for a, b in pairs)])}
    merging = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=pairs)), eos_token="<eos>"
    )
    ids = tuple(merging("1234")["input_ids"])
    assert [merging.decode([i]) for i in ids] == ["12", "34"]
    example = Example((1,), (*ids, 0), "10:1000+234=", "1234")
    with pytest.raises(InputError, match="a token for each character"):
        TaskNoise(task, merging, 1.0).mistakes([example], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ((1, 2, 3), None),
        ((1, 2), None),
        ((), None),
        ((1, 2, 3, 3, 4), Mistake(3, (3, 4))),
        ((2, 2, 3), Mistake(0, (2, 2, 3))),
        ((1, 2, 4, 3, 3), Mistake(2, (4, 3, 3))),
        ((4,), Mistake(0, (4,))),
    ],
)
def test_departure(completion, expected):
    assert departure(EXPERT, completion) == expected


def test_departure_from_an_expert_that_was_cut():
    assert departure((1, 2), (1, 2, 3)) is None
    assert departure((1, 2), (1, 3, 2)) == Mistake(1, (3, 2))


@pytest.mark.parametrize("rate", [0.1, 0.6, 1.0])
def test_rollout_noise_rate(rate):
    engine = FakeEngine((1, 4, 4))
    found = RolloutNoise(engine, SamplingConfig(), rate).mistakes(EXAMPLES, np.random.default_rng(0))
    made = [mistakes for mistakes in found if mistakes]
    assert made == [[Mistake(1, (4, 4))]] * len(made)
    assert binomtest(len(made), len(EXAMPLES), rate).pvalue > 1e-3
    assert sum(len(prompts) for prompts, _ in engine.calls) == len(made)  # none is sampled in vain


def test_rollout_noise_goes_to_the_example_it_came_from():
    """Prompts that name themselves, and an engine that answers with the prompt's own number."""

    class Echo(FakeEngine):
        def rollout(self, prompts, config, **_):
            return [self.answer(prompt, prompt) for prompt in prompts]

    examples = [Example((4 + i,), (1, 2, 0), "", "") for i in range(50)]
    found = RolloutNoise(Echo(), SamplingConfig(), 0.5).mistakes(examples, np.random.default_rng(0))
    assert 0 < sum(map(len, found)) < 50
    for example, mistakes in zip(examples, found, strict=True):
        assert mistakes in ([], [Mistake(0, example.prompt_ids)])


def test_rollouts_that_are_right_or_stop_short_are_no_mistake():
    engine = FakeEngine((1, 2, 3), (1, 2), (1, 4), ())
    found = RolloutNoise(engine, SamplingConfig(), 1.0).mistakes(EXAMPLES[:8], np.random.default_rng(0))
    assert found == [[], [], [Mistake(1, (4,))], []] * 2


def test_an_attempt_ends_where_the_policy_itself_deletes():
    """What it has learned to take back is shown as it takes it back; that it then gets it right is no mistake."""
    engine = FakeEngine((1, 4, 4, 19, 1, 2, 3), (1, 4, 18, 2, 3), (1, 2, 18, 4), (18, 4))
    found = RolloutNoise(engine, SamplingConfig(), 1.0).mistakes(EXAMPLES[:4], np.random.default_rng(0))
    assert found == [[Mistake(1, (4, 4))], [Mistake(1, (4,))], [], []]


def test_rollout_noise_samples_as_it_is_told_and_anew_each_time():
    engine = FakeEngine((4,))
    sampling = SamplingConfig(temperature=0.7, max_completion_length=9, seed=1)
    noise = RolloutNoise(engine, sampling, 1.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        noise.mistakes(EXAMPLES[:2], rng)
    configs = [config for _, config in engine.calls]
    assert {(config.temperature, config.max_completion_length) for config in configs} == {(0.7, 9)}
    assert {(config.allow_backspace, config.max_actions) for config in configs} == {(True, 10)}
    assert len({config.seed for config in configs}) == 3
    again = FakeEngine((4,))
    RolloutNoise(again, sampling, 1.0).mistakes(EXAMPLES[:2], np.random.default_rng(0))
    assert again.calls[0][1] == configs[0]


SPACES = {"backspace": [1], "reset": [ALL], "both": [1, ALL], "one and three": [1, 3]}


def source_of(kind, rate, space, tiny_model):
    """A source of mistakes, and examples that it has mistakes for."""
    if kind == "task":
        task = StarGraphs(nodes=10, degree=2)
        tokenizer, examples = texts_of(task, 40)
        return TaskNoise(task, tokenizer, rate), examples
    if kind == "rollout":
        return RolloutNoise(FakeEngine((1, 4, 4), (7,), (1, 2, 3, 3)), SamplingConfig(), rate), EXAMPLES[:40]
    if kind == "model":
        return ModelNoise(tiny_model(vocab_size=space.vocab_size), space, rate, 3), EXAMPLES[:40]
    return {"uniform": UniformNoise(space, rate, 3), "none": NoNoise()}[kind], EXAMPLES[:40]


@pytest.mark.parametrize("rate", [0.0, 0.6])
@pytest.mark.parametrize("deletions", SPACES)
@pytest.mark.parametrize("kind", ["uniform", "model", "task", "rollout", "none"])
def test_the_expert_survives_every_source(tiny_model, kind, deletions, rate):
    eos = 1 if kind == "task" else 0
    space = ActionSpace(20, eos, tuple(Deletion(18 + i, length) for i, length in enumerate(SPACES[deletions])))
    source, examples = source_of(kind, rate, space, tiny_model)
    found = source.mistakes(examples, np.random.default_rng(0))
    assert len(found) == len(examples)
    assert any(found) == (rate > 0 and kind != "none")
    for example, mistakes in zip(examples, found, strict=True):
        trajectory = demonstrate(example, mistakes, space, 0.5)
        assert trajectory.terminated
        assert replay(trajectory, space).completion == example.completion_ids[:-1]
        wrong = sum(len(mistake.tokens) for mistake in mistakes)
        assert (trajectory.action_weights != 1).sum() == wrong
        if not mistakes:
            assert trajectory == Trajectory(example.prompt_ids, example.completion_ids)
