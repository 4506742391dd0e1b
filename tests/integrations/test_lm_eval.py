"""The model `sequencematch` of the lm-evaluation-harness, against definitions and against the harness's own `hf`."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval_models import recovering_model, reference, requests_of

from sequencematch.errors import InputError
from sequencematch.integrations.harness import SequenceMatchLM
from sequencematch.integrations.lm_eval import main
from sequencematch.models import action_space, add_adapters, add_backspace_token, load_model, save_adapters
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig
from sequencematch.tasks import build_tokenizer

pytestmark = pytest.mark.filterwarnings(  # from peft
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:fan_in_fan_out is set to False:UserWarning"
)

TASKS = Path(__file__).parent / "lm_eval_tasks"
ALPHABET = "abcdefghijkl =+"
SIZE = 19  # of its tokenizer
TASK_MANAGER = TaskManager(include_path=str(TASKS), include_defaults=False)
OPTIONS = {"max_gen_toks": 8, "until": ["+"]}
PAIRS = [
    ("ab=", "cd"),
    ("ab=", "ce"),
    ("ab=", "d"),
    ("a", "b"),
    ("", "abc"),
    ("ab ", "c"),
    ("abcdefgh" * 9, "ijk"),  # longer than the model's 64 positions
    ("abcdefgh" * 7 + "abcdefg", "ij"),  # fits exactly
    ("a" * 70, "b" * 64),
]
TEXTS = [("abc",), ("abcdefghijkl" * 12,), ("a" * 64,), ("a" * 65,)]
SAMPLED = {**OPTIONS, "do_sample": True}


@pytest.fixture(scope="module")
def save(tiny_model, tmp_path_factory):
    """`save(family, deletions)`: the folder of a random model with these deletions."""

    def make(family="llama", deletions=None):
        folder = tmp_path_factory.mktemp("saved")
        model, tokenizer = tiny_model(family, vocab_size=SIZE, eos_token_id=1), build_tokenizer(ALPHABET)
        if deletions:
            add_backspace_token(model, tokenizer, deletions)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def plain(save):
    return save()


@pytest.fixture(scope="module")
def deleting(save):
    return save(deletions={"<bksp>": 1, "<two>": 2, "<reset>": "all"})


@pytest.fixture(scope="module")
def recovering(tiny_model, tmp_path_factory):
    """The folder of a model that errs first and takes it back; see `recovering_model`."""
    folder = tmp_path_factory.mktemp("recovering")
    tokenizer = build_tokenizer(ALPHABET)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = recovering_model(tiny_model("gpt2", vocab_size=SIZE, eos_token_id=1), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def in_tasks(monkeypatch, tmp_path):
    """The harness runs where the data lies, and caches it elsewhere."""
    import datasets

    monkeypatch.chdir(TASKS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


def evaluate(folder, tasks=("recover_generate",), **arguments):
    return simple_evaluate(
        "sequencematch",
        {"pretrained": folder, **arguments},
        list(tasks),
        batch_size=3,
        bootstrap_iters=0,
        task_manager=TASK_MANAGER,
    )


def generate(lm, *arguments):
    return lm.generate_until(requests_of("generate_until", list(arguments)), disable_tqdm=True)


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_without_deletions_it_is_the_harness_s_own_model(plain, batch_size):
    ours = SequenceMatchLM(plain, batch_size=batch_size, max_batch_size=2)
    theirs = HFLM(plain, device="cpu", batch_size=4)
    pairs = requests_of("loglikelihood", PAIRS)
    for mine, other in zip(ours.loglikelihood(pairs, True), theirs.loglikelihood(pairs, True), strict=True):
        assert mine == (pytest.approx(other[0], abs=1e-4), other[1])
    texts = requests_of("loglikelihood_rolling", TEXTS)
    rolled = ours.loglikelihood_rolling(texts, True), theirs.loglikelihood_rolling(texts, True)
    assert rolled[0] == pytest.approx(rolled[1], abs=1e-3, rel=1e-5)
    prompts = [
        ("ab=", OPTIONS),
        ("abcdefghijk" * 8, OPTIONS),
        ("b", {"until": "c"} | {"max_gen_toks": 5}),
        ("ef", {**OPTIONS, "until": ["a", "kl"]}),
    ]
    assert generate(ours, *prompts) == generate(theirs, *prompts)
    assert ours.tokenizer_name == theirs.tokenizer_name
    assert (ours.max_length, ours.prefix_token_id, ours.rank) == (theirs.max_length, theirs.prefix_token_id, 0)


def test_a_context_without_tokens_is_an_empty_one(plain):
    """The harness moves a context's last spaces into the continuation."""
    pairs = requests_of("loglikelihood", [(" ", "c"), ("", " c")])
    spaces, empty = SequenceMatchLM(plain).loglikelihood(pairs, True)
    assert spaces == (pytest.approx(empty[0], abs=1e-5), empty[1])


def test_rolling_windows_know_what_may_be_deleted(deleting):
    """A later window begins in the middle of the completion."""
    lm = SequenceMatchLM(deleting, deletion_mass="included", max_length=5, batch_size=2)
    text = "abcdefghijkl"
    tokens = lm.tok_encode(text)
    windows = [([lm.prefix_token_id], 0, 5), (tokens[4:5], 5, 10), (tokens[6:10], 10, 12)]
    expected = sum(
        reference(lm.model, lm.space, context, tokens[start:stop], False, start)[0] for context, start, stop in windows
    )
    found = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", [(text,), ("a",)]), True)
    assert found[0] == pytest.approx(expected, abs=1e-4)


def test_generation_is_sampling_in_the_token_mdp(deleting):
    lm = SequenceMatchLM(deleting, backspace_logit_bias=2.0, max_deletions=6, max_actions=30, batch_size=2)
    prompts = ["ab=", "cd=", "ef=", ""]
    found = generate(lm, *((prompt, {"max_gen_toks": 8}) for prompt in prompts))
    engine = HFRolloutEngine(lm.model, lm.space, tokenizer=lm.tokenizer)
    config = SamplingConfig(
        temperature=0.0,
        retry="exclude",
        backspace_logit_bias=2.0,
        max_deletions=6,
        max_actions=30,
        max_completion_length=8,
    )
    ids = [lm.tok_encode(prompt) or [lm.prefix_token_id] for prompt in prompts]
    rollouts = engine.rollout(ids, config)
    deletions = [action in lm.space.by_token for rollout in rollouts for action in rollout.trajectory.actions.tolist()]
    assert sum(deletions) > 3
    assert found == [lm.tokenizer.decode(each.completion, skip_special_tokens=True) for each in rollouts]
    without = engine.rollout(ids, replace(config, allow_backspace=False))
    assert found != [lm.tokenizer.decode(each.completion, skip_special_tokens=True) for each in without]


def test_samples_depend_on_seed_prompt_and_repetition_alone(deleting):
    lm, alone = SequenceMatchLM(deleting, batch_size=4), SequenceMatchLM(deleting, batch_size=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = {**SAMPLED, "max_gen_toks": 7}
        asked = generate(lm, ("ef=", other), *[("ab=", SAMPLED)] * 8, ("cd=", SAMPLED), ("gh=", other))[1:10]
        assert len(set(asked[:8])) > 4
        assert generate(alone, ("cd=", SAMPLED), *[("ab=", SAMPLED)] * 8) == [asked[8], *asked[:8]]
        torch.manual_seed(2)
        assert generate(lm, *[("ab=", SAMPLED)] * 8) != asked[:8]


def test_decoding_options_reach_the_sampler(deleting):
    lm = SequenceMatchLM(deleting)
    greedy = lm._decoding({"max_gen_toks": 4})
    assert (greedy.temperature, greedy.retry, greedy.max_completion_length) == (0.0, "exclude", 4)
    assert greedy.stop_strings == ("<eos>",)
    assert lm._prompt("abcdefgh" * 9, greedy) == lm.tok_encode("abcdefgh" * 9)[-(64 - 4) :]
    sampled = lm._decoding(
        {"do_sample": True, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "max_new_tokens": 5, "until": "b"}
    )
    assert (sampled.temperature, sampled.retry, sampled.max_completion_length) == (1.0, "resample", 5)
    assert (sampled.top_k, sampled.top_p, sampled.min_p, sampled.stop_strings) == (3, 0.9, 0.1, ("b", "<eos>"))
    assert lm._decoding({"temperature": 0.5, "num_beams": 1, "top_k": None}).temperature == 0.5
    assert lm._decoding({"temperature": 0.5, "do_sample": False}).temperature == 0.0
    assert SequenceMatchLM(deleting, retry="resample")._decoding({}).retry == "resample"


@pytest.mark.parametrize("mark", ["d", "token"])
def test_reasoning_is_cut_off(recovering, mark):
    lm = SequenceMatchLM(recovering)
    lm.think_end_token = lm.tokenizer.convert_tokens_to_ids("d") if mark == "token" else mark
    assert generate(lm, ("a=", OPTIONS), ("e=", OPTIONS)) == ["k", "ck"]


def test_tasks_run_and_deletions_count(recovering, in_tasks):
    tasks = ("recover_generate", "recover_choice")
    results = evaluate(recovering, tasks)
    assert results["results"]["recover_generate"]["exact_match,none"] == 1.0
    assert results["results"]["recover_choice"]["acc,none"] == 0.0
    assert [sample["resps"] for sample in results["samples"]["recover_generate"]] == [
        [[x]] for x in ("dk", "dk", "ck", "ck")
    ]
    other = evaluate(recovering, tasks, allow_backspace=False, deletion_mass="included")
    assert other["results"]["recover_generate"]["exact_match,none"] == 0.0
    assert other["results"]["recover_choice"]["acc,none"] == 1.0


def test_retry_matters_to_greedy_decoding(recovering, in_tasks):
    results = evaluate(recovering, retry="resample", max_actions=20)
    assert results["results"]["recover_generate"]["exact_match,none"] == 0.0


def test_chat_templates(recovering, in_tasks):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(recovering)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'][:1] }}{% endfor %}"
        "{% if add_generation_prompt %}={% endif %}"
    )
    model = load_model(recovering)
    lm = SequenceMatchLM(model, tokenizer=tokenizer, batch_size=2)
    assert lm.tokenizer_name.endswith("recovering0")
    results = simple_evaluate(
        lm,
        tasks=["recover_generate"],
        apply_chat_template=True,
        bootstrap_iters=0,
        task_manager=TASK_MANAGER,
    )
    assert results["samples"]["recover_generate"][0]["arguments"][0][0] == "a="
    assert results["results"]["recover_generate"]["exact_match,none"] == 1.0


@pytest.mark.slow
def test_the_command_line(recovering, tmp_path):
    command = [sys.executable, "-m", "sequencematch.integrations.lm_eval", "--model", "sequencematch"]
    command += [
        "--model_args",
        f"pretrained={recovering},max_deletions=4",
        "--tasks",
        "recover_generate,recover_choice",
    ]
    command += [
        "--include_path",
        str(TASKS),
        "--output_path",
        str(tmp_path / "out"),
        "--batch_size",
        "4",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TASKS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["results"]["recover_generate"]["exact_match,none"] == 1.0
    assert results["results"]["recover_choice"]["acc,none"] == 0.0
    assert results["config"]["model"] == "sequencematch"
    assert results["config"]["model_args"]["max_deletions"] == 4


def test_answers_are_cached_as_they_come(recovering, tmp_path):
    lm = SequenceMatchLM(recovering)
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    generate(lm, ("a=", OPTIONS), ("b=", OPTIONS))
    lm.loglikelihood(requests_of("loglikelihood", PAIRS[:2]), True)
    lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", TEXTS[:1]), True)
    assert len(cached.dbdict) == 5
    lm.loglikelihood = lm.loglikelihood_rolling = None
    assert cached.loglikelihood_rolling(requests_of("loglikelihood_rolling", TEXTS[:1]))[0] < 0
    cached.dbdict.close()


def test_folders_of_adapters(save, tmp_path):
    peft = pytest.importorskip("peft")
    base, tokenizer = load_model(save()), build_tokenizer(ALPHABET)
    space = add_backspace_token(base, tokenizer)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = add_adapters(base, config, space).eval()
    save_adapters(model, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = SequenceMatchLM(str(tmp_path), dtype="float32")
    assert lm.space == space == action_space(model, tokenizer)
    found = lm.loglikelihood(requests_of("loglikelihood", [("ab=", "cd")]), True)[0]
    expected = reference(model, space, lm.tok_encode("ab="), lm.tok_encode("cd"), True)
    assert found == (pytest.approx(expected[0], abs=1e-4), expected[1])
    assert generate(lm, ("ab=", OPTIONS))


def test_the_dtype_is_the_user_s(deleting):
    lm = SequenceMatchLM(deleting, dtype="bfloat16")
    assert lm.model.dtype == torch.bfloat16
    assert lm.loglikelihood(requests_of("loglikelihood", [("ab=", "cd")]), True)[0][0] < 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"peft": "folder"}, "no argument 'peft'"),
        ({"deletion_mass": "half"}, "deletion_mass is one of"),
        ({"retry": "again"}, "retry must be one of"),
        ({"pretrained": "./nowhere"}, "there is no folder './nowhere'"),
    ],
)
def test_bad_model_arguments(deleting, arguments, message):
    with pytest.raises(InputError, match=message):
        SequenceMatchLM(**{"pretrained": deleting, **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 1.2}, "hold more than until"),
        ({"num_beams": 2}, "hold more than until"),
        ({"max_gen_toks": 64}, "leaves no room for a prompt in max_length=64"),
        ({"max_gen_toks": 8, "do_sample": True, "top_p": 2}, "top_p must be"),
    ],
)
def test_bad_generation_options(deleting, options, message):
    with pytest.raises(InputError, match=message):
        generate(SequenceMatchLM(deleting), ("ab=", options))


def test_a_continuation_too_long_for_the_model(plain):
    with pytest.raises(InputError, match="continuation of 65 tokens does not fit max_length=64"):
        SequenceMatchLM(plain).loglikelihood(requests_of("loglikelihood", [("a", "b" * 65)]), True)


def test_without_the_harness_it_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sequencematch.integrations.harness")
    monkeypatch.delitem(sys.modules, "sequencematch.integrations.decoding")
    with pytest.raises(InputError, match=r"pip install 'sequencematch\[lm_eval\]'"):
        importlib.import_module("sequencematch.integrations.harness")
    assert main(["--help"]) == 2
    assert capsys.readouterr().err.startswith("sequencematch: error: ")
