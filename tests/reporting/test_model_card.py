"""The model card: the hub reads its metadata, its code runs, and nobody's own README.md is touched."""

import re
import warnings

import pytest
import transformers
from huggingface_hub import ModelCard

from sequencematch.reporting.completions import completions_markdown
from sequencematch.reporting.model_card import MARKER, write_model_card

NAME = "star-model"
GIVEN = {"model_name": NAME, "options": {"objective": "sequencematch", "alpha": 0.01}, "versions": {"torch": "2.13.0"}}
SAMPLE = {
    "step": 7,
    "prompt": "ab=",
    "pieces": [{"text": "c", "fate": "deleted"}, {"text": "<bksp>", "fate": "deletion"}, {"text": "d", "fate": "kept"}],
    "completion": "d",
    "finish_reason": "max_actions",
}


@pytest.fixture
def adapters(tiny_model):
    """A tiny model with adapters."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        # PEFT asks models for a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))


def text_of(folder, **changes):
    return write_model_card(folder, **{**GIVEN, **changes}).read_text()


def code_of(text):
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    return code


def test_the_hub_reads_what_was_written(tmp_path):
    path = write_model_card(tmp_path / "new", **GIVEN, base_model="some-lab/base", dataset_name="some-lab/data")
    assert path == tmp_path / "new" / "README.md"
    assert list(path.parent.iterdir()) == [path]
    card = ModelCard.load(path)
    assert card.data.to_dict() == {
        "base_model": "some-lab/base",
        "datasets": "some-lab/data",
        "library_name": "transformers",
        "model_name": NAME,
        "pipeline_tag": "text-generation",
        "tags": ["sequencematch", "backspace"],
    }
    assert str(card) == path.read_text()


def test_everything_that_is_given_is_there(tmp_path):
    text = text_of(
        tmp_path,
        base_model="some-lab/base",
        dataset_name="some-lab/data",
        results={"accuracy": 0.98123456, "questions": 500},
        samples=[SAMPLE],
        links={"Weights & Biases": "https://wandb.ai/some/run"},
    )
    for line in (
        "- Base model: [some-lab/base](https://huggingface.co/some-lab/base)",
        "- Training data: [some-lab/data](https://huggingface.co/datasets/some-lab/data)",
        "- [Weights &#38; Biases](https://wandb.ai/some/run)",
        "| accuracy | 0.9812 |",
        "| questions | 500 |",
        "| objective | sequencematch |",
        "| alpha | 0.01 |",
        "| torch | 2.13.0 |",
    ):
        assert line in text.splitlines()
    assert completions_markdown([SAMPLE]) in text
    assert "@inproceedings{cundy2024sequencematch," in text
    assert "2306.05426" in text


def test_what_is_missing_is_left_out(tmp_path):
    text = text_of(tmp_path, options={"alpha": 0.01, "max_staleness": None}, results={"accuracy": None})
    for word in ("None", "max_staleness", "Results", "Samples", "Base model", "Training data", "license"):
        assert word not in text
    assert set(ModelCard(text).data.to_dict()) == {"library_name", "model_name", "pipeline_tag", "tags"}


def test_local_paths_stay_private(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    for base in ("base", str(tmp_path / "base"), "../elsewhere/base", "/no/such/folder"):
        assert "base_model" not in text_of(tmp_path, base_model=base)
    assert "datasets:" not in text_of(tmp_path, dataset_name="../rows.jsonl")


def test_values_cannot_break_the_tables(tmp_path):
    text = text_of(tmp_path, options={"deletions": {"<|bksp|>": 1}, "note": "two\nlines"})
    assert "| deletions | {'&#60;&#124;bksp&#124;&#62;': 1} |" in text.splitlines()
    assert "| note | two↵lines |" in text.splitlines()


def test_a_card_of_ours_is_written_anew(tmp_path):
    text_of(tmp_path, results={"accuracy": 0.5})
    assert "| accuracy | 0.75 |" in text_of(tmp_path, results={"accuracy": 0.75})


@pytest.mark.parametrize("content", ["# My own words\n", "---\nlicense: mit\n---\n# Mine\n", b"\xff\xfe", ""])
def test_somebody_elses_readme_stays(tmp_path, content):
    path = tmp_path / "README.md"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    assert write_model_card(tmp_path, **GIVEN) is None
    assert path.read_bytes() == before


def test_a_card_that_was_edited_and_unmarked_stays(tmp_path):
    edited = text_of(tmp_path).replace(MARKER, "")
    (tmp_path / "README.md").write_text(edited)
    assert write_model_card(tmp_path, **GIVEN) is None


def test_the_empty_template_of_peft_is_replaced(tmp_path, adapters):
    adapters.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    template = path.read_text()
    card = ModelCard(text_of(tmp_path, adapter=True, base_model="some-lab/base"))
    assert MARKER in card.text
    assert card.data.library_name == "peft"
    path.write_text(template.replace("[More Information Needed]", "Somebody", 1))
    assert write_model_card(tmp_path, **GIVEN) is None
    path.write_text(template + "\nI added this.\n")
    assert write_model_card(tmp_path, **GIVEN) is None


def test_peft_adds_to_a_card_that_is_there(tmp_path, adapters):
    """Saved again, the adapters change the card, and the next save changes it back."""
    first = text_of(tmp_path, adapter=True)
    adapters.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() != first
    assert text_of(tmp_path, adapter=True) == first


def test_a_folder_that_cannot_be_written_keeps_its_card(tmp_path):
    before = text_of(tmp_path)
    (tmp_path / ".README.md.tmp").mkdir()
    with pytest.raises(OSError, match=r"README\.md\.tmp"):
        write_model_card(tmp_path, **GIVEN, results={"accuracy": 1.0})
    assert (tmp_path / "README.md").read_text() == before


def test_the_quick_start_runs(tmp_path, tiny_model, tokenizer, capsys):
    from sequencematch import add_backspace_token

    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    add_backspace_token(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = code_of(text_of(tmp_path, hub_model_id=str(tmp_path)))
    assert f'"{tmp_path}"' in code
    exec(code.replace("Your prompt", "ab =").replace("max_new_tokens=64", "max_new_tokens=4"), {})
    assert capsys.readouterr().out.startswith("ab =")


# PEFT asks models for a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_quick_start_of_adapters_runs(tmp_path, tiny_model, tokenizer, capsys):
    peft = pytest.importorskip("peft")
    from sequencematch.models import add_adapters, add_backspace_token, save_adapters

    base, folder = tmp_path / "base", tmp_path / "adapters"
    tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    space = add_backspace_token(model, tokenizer)
    adapted = add_adapters(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"), space)
    save_adapters(adapted, folder)
    tokenizer.save_pretrained(folder)
    code = code_of(text_of(folder, adapter=True, hub_model_id=str(folder)))
    exec(code.replace("Your prompt", "ab =").replace("max_new_tokens=64", "max_new_tokens=4"), {})
    assert capsys.readouterr().out.startswith("ab =")


def test_names_are_strings_of_the_code(tmp_path):
    code = code_of(text_of(tmp_path, adapter=True, hub_model_id='us"er/adapters'))
    compile(code, "card", "exec")
    assert r'load_model("us\"er/adapters")' in code
