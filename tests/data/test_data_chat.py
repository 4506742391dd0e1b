"""Conversations: every assistant turn is an example, written as the chat template writes it."""

import json
from importlib.resources import files

import pytest
from data_chats import CHATML, GEMMA, QWEN3, REWRITING, TOOLS, assistant, chat_tokenizer, message, user
from datasets import Dataset

from sequencematch.data import Example, tokenize_dataset
from sequencematch.errors import InputError
from sequencematch.mdp import ActionSpace, Deletion

LONG = [message("system", "Be brief."), user("1+1?"), assistant("2"), user("and 1?"), assistant("3"), user("so?")]
SHORT = [user("hi"), assistant("hello")]


def tokenize(tokenizer, rows, **options):
    """The examples of a list of rows."""
    return [Example.from_row(row) for row in tokenize_dataset(Dataset.from_list(rows), tokenizer, **options)]


def whole(tokenizer, messages, **options):
    """A conversation as the template itself tokenizes it."""
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


def test_every_assistant_turn_is_an_example():
    tokenizer = chat_tokenizer(CHATML)
    first, second, third = tokenize(tokenizer, [{"messages": LONG, "source": "x"}, {"messages": SHORT, "source": "y"}])
    system = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert (first.prompt, first.completion) == (system, "2")
    assert second.prompt == system + "2<|im_end|>\n<|im_start|>user\nand 1?<|im_end|>\n<|im_start|>assistant\n"
    assert (second.completion, third.completion) == ("3", "hello")
    assert third.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_prompt_and_completion_together_are_the_templates_own_tokens():
    """Up to the eos token; the template's newline after it belongs to the next prompt."""
    tokenizer = chat_tokenizer(CHATML)
    for example, end in zip(tokenize(tokenizer, [{"messages": LONG}]), (3, 5), strict=True):
        assert [*example.prompt_ids, *example.completion_ids] == whole(tokenizer, LONG[:end])[:-1]
        asked = whole(tokenizer, LONG[: end - 1], add_generation_prompt=True)
        assert list(example.prompt_ids) == asked  # what a user of the model will ask with
        assert example.completion_ids[-1] == tokenizer.eos_token_id not in example.completion_ids[:-1]


def test_the_next_prompt_continues_the_last_completion():
    first, second = tokenize(chat_tokenizer(CHATML), [{"messages": LONG}])
    together = (*first.prompt_ids, *first.completion_ids)
    assert second.prompt_ids[: len(together)] == together


@pytest.mark.parametrize("template", [CHATML, GEMMA, QWEN3])
def test_a_pair_of_message_lists_is_the_conversation_of_both(template):
    tokenizer = chat_tokenizer(template)
    pairs = [{"prompt": LONG[1:4], "completion": LONG[4:5]}, {"prompt": SHORT[:1], "completion": SHORT[1:]}]
    conversations = [{"messages": LONG[1:5]}, {"messages": SHORT}]
    assert tokenize(tokenizer, pairs) == tokenize(tokenizer, conversations)[1:]


def test_a_completion_of_several_turns_is_as_many_examples():
    tokenizer = chat_tokenizer(CHATML)
    pair = {"prompt": LONG[:2], "completion": LONG[2:5]}
    assert tokenize(tokenizer, [pair]) == tokenize(tokenizer, [{"messages": LONG}])


def test_a_template_that_ends_turns_without_eos():
    tokenizer = chat_tokenizer(GEMMA, eos_token="<eos>")
    first, second = tokenize(tokenizer, [{"messages": [user("a"), assistant(" b\n"), user("c"), assistant("d")]}])
    assert (first.prompt, first.completion) == ("<bos><start>user\na<end>\n<start>model\n", "b<end>")
    assert (second.prompt, second.completion) == (
        first.prompt + "b<end>\n<start>user\nc<end>\n<start>model\n",
        "d<end>",
    )
    for example in (first, second):
        assert example.prompt_ids.count(tokenizer.bos_token_id) == 1
        end, eos = example.completion_ids[-2:]
        assert (tokenizer.convert_ids_to_tokens(end), eos) == ("<end>", tokenizer.eos_token_id)


def test_earlier_thinking_is_dropped_from_prompts_and_imitated_where_it_belongs():
    tokenizer = chat_tokenizer(QWEN3)
    messages = [user("a"), assistant("<think>x</think>b"), user("c"), assistant("<think>y</think>d")]
    first, second = tokenize(tokenizer, [{"messages": messages}])
    assert (first.completion, second.completion) == ("<think>x</think>b", "<think>y</think>d")
    assert "x" not in second.prompt
    assert "b<|im_end|>\n" in second.prompt
    assert list(second.prompt_ids) == whole(tokenizer, messages[:3], add_generation_prompt=True)


def test_the_template_gets_tools_and_options():
    tokenizer = chat_tokenizer(TOOLS)
    call = {"role": "assistant", "tool_calls": [{"name": "add"}]}
    messages = [user("1+1?"), call, message("tool", "2"), assistant("It is 2.")]
    tools = [{"name": "add"}, {"name": "subtract"}]
    calls, answers = tokenize(tokenizer, [{"messages": messages, "tools": tools}])
    assert (calls.prompt, calls.completion) == ("tools: add subtract\nuser: 1+1?<|im_end|>\nassistant: ", "call add")
    assert (answers.prompt, answers.completion) == (
        calls.prompt + "call add<|im_end|>\ntool: 2<|im_end|>\nassistant: ",
        "It is 2.",
    )
    assert tokenize(tokenizer, [{"messages": messages, "tools": json.dumps(tools)}]) == [calls, answers]
    options = {"chat_template_kwargs": {"opening": "Well, "}}
    opened, plain = tokenize(
        tokenizer,
        [
            {"prompt": [user("a")], "completion": [assistant("Well, b")], "tools": [], **options},
            {"prompt": [user("a")], "completion": [assistant("Well, b")], "tools": None, "chat_template_kwargs": None},
        ],
    )
    assert (opened.prompt, opened.completion) == ("user: a<|im_end|>\nassistant: Well, ", "b")
    assert (plain.prompt, plain.completion) == ("user: a<|im_end|>\nassistant: ", "Well, b")


FAMILIES = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "phi3": "<|endoftext|>",
    "gemma3": "<eos>",
    "glm4moe": "<|endoftext|>",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_templates_of_known_families(family):
    """Prompts and completions of the real templates, put together, are what those write."""
    path = files("trl") / "chat_templates" / f"{family}.jinja"
    tokenizer = chat_tokenizer(path.read_text(encoding="utf-8"))
    tokenizer.add_tokens(FAMILIES[family], special_tokens=True)
    tokenizer.eos_token = FAMILIES[family]
    examples = tokenize(tokenizer, [{"messages": LONG}])
    assert len(examples) == 2
    for example, end in zip(examples, (3, 5), strict=True):
        answer, written = LONG[end - 1]["content"], whole(tokenizer, LONG[:end], tokenize=False)
        assert answer in example.completion
        assert written.startswith(example.prompt + example.completion)
        assert written[len(example.prompt + example.completion) :].strip() in ("", tokenizer.eos_token)


def test_a_cut_turn_has_no_eos():
    tokenizer = chat_tokenizer(CHATML)
    (example,) = tokenize(tokenizer, [{"messages": SHORT}])
    room = len(example.prompt_ids) + 3
    with pytest.raises(InputError, match=f"example 0 has {room + 3} tokens .*truncate_long"):
        tokenize(tokenizer, [{"messages": SHORT}], max_length=room)
    (cut,) = tokenize(tokenizer, [{"messages": SHORT}], max_length=room, truncate_long=True)
    assert cut == Example(example.prompt_ids, example.completion_ids[:3], example.prompt, "hello")


def test_only_the_end_of_a_turn_is_eos():
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.add_tokens("<bksp>", special_tokens=True)
    space = ActionSpace(
        len(tokenizer), tokenizer.eos_token_id, (Deletion(tokenizer.convert_tokens_to_ids("<bksp>"), 1),)
    )
    assert len(tokenize(tokenizer, [{"messages": LONG}], space=space)) == 2  # eos in prompts is fine
    for content in ("a<|im_end|>b", "a<|im_end|>", "a<bksp>b"):
        with pytest.raises(InputError, match="completion of example 1 contains the text of the eos token"):
            tokenize(tokenizer, [{"messages": SHORT}, {"messages": [user("a"), assistant(content)]}], space=space)


GOOD = {"messages": SHORT}
PAIR = {"prompt": [user("a")], "completion": [assistant("b")]}


@pytest.mark.parametrize(
    ("template", "rows", "sentence"),
    [
        (None, [GOOD], "no chat template; set chat_template_path"),
        (None, [PAIR], "no chat template; set chat_template_path"),
        (CHATML, [GOOD, {"messages": [user("a")]}], "example 1 has no assistant turn to imitate"),
        (CHATML, [PAIR, {**PAIR, "completion": [user("a")]}], "example 1 has no assistant turn to imitate"),
        (CHATML, [GOOD, {"messages": [assistant("a"), *SHORT]}], "example 1 begins with an assistant turn"),
        (CHATML, [GOOD, {"messages": []}], "example 1 has no messages; every example needs a non-empty list"),
        (CHATML, [GOOD, {"messages": None}], "example 1 has no messages"),
        (CHATML, [{"messages": "a"}], "example 0 has no messages"),
        (CHATML, [PAIR, {**PAIR, "prompt": []}], "example 1 has no prompt; every example needs a non-empty list"),
        (CHATML, [PAIR, {**PAIR, "completion": []}], "example 1 has no completion; every example needs a non-empty"),
        (CHATML, [PAIR, {**PAIR, "completion": None}], "example 1 has no completion"),
        (CHATML, [PAIR, {**PAIR, "completion": [assistant("")]}], "message 1 of example 1 is an empty assistant turn"),
        (CHATML, [{"messages": [user("a"), assistant(" \n")]}], "message 1 of example 0 is an empty assistant turn"),
        (QWEN3, [{"messages": [user("a"), assistant("")]}], "message 1 of example 0 is an empty assistant turn"),
        (
            CHATML,
            [{"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
            r"message 0 in the messages of example 0 is not of the form \{.role.: .user., .content.: .*\}; give every",
        ),
        (CHATML, [GOOD, {"messages": [user("a"), {"role": "assistant"}]}], "message 1 in the messages of example 1"),
        (CHATML, [{"messages": ["a", "b"]}], "message 0 in the messages of example 0 is not of the form"),
        (
            GEMMA,
            [{"messages": [user("a"), user("b"), assistant("c")]}],
            "template cannot write example 0: Roles must alternate; change its messages",
        ),
        (
            REWRITING,
            [GOOD],
            "prompt of message 1 of example 0 differently .* chat_template_path to a template that only",
        ),
        (CHATML, [{**GOOD, "tools": "[add"}], "tools of example 0 are no valid JSON"),
        (CHATML, [{**GOOD, "tools": '{"name": "add"}'}], "tools of example 0 must be a list"),
        (CHATML, [{**GOOD, "chat_template_kwargs": "thinking"}], "chat_template_kwargs of example 0 must be a mapping"),
        (CHATML, [{**GOOD, "chat_template_kwargs": {"tokenize": True}}], "template cannot write example 0: "),
    ],
)
def test_refuses_a_conversation(template, rows, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        tokenize(chat_tokenizer(template), rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [GOOD, PAIR])
def test_prompts_of_conversations_are_not_imitated(row):
    with pytest.raises(InputError, match=r"completion_only_loss: false would imitate .* leave it out"):
        tokenize(chat_tokenizer(CHATML), [row], completion_only=False)
