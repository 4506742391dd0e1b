"""The streamer that shows a text in the terminal and takes back what is deleted."""

import io

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sequencematch.rollouts import RetractingTextStreamer


def letters():
    tokenizer = Tokenizer(models.WordLevel({letter: token for token, letter in enumerate("abcdef")}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def play(terminal, **options):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=60, color_system=None)
    streamer = RetractingTextStreamer(letters(), console=console, **options)
    streamer.put(torch.tensor([[0, 1]]))
    for token in (2, 3, 4):
        streamer.put(torch.tensor([token]))
    streamer.retract(2)
    streamer.put(torch.tensor([5]))
    during = output.getvalue()
    streamer.end()
    return streamer, output, during


def test_the_text_is_shown_live_and_what_was_deleted_is_gone():
    _, output, during = play(terminal=True)
    for shown in ("abc", "abcd", "abcde", "abcf"):
        assert shown in during
    assert output.getvalue().rstrip().endswith("abcf")


def test_held_back_tokens_that_are_deleted_are_never_shown():
    _, output, during = play(terminal=True, hold_back=2)
    assert "abc" in during
    assert not any(letter in output.getvalue().replace("abcf", "") for letter in ("d", "e"))
    assert output.getvalue().rstrip().endswith("abcf")


def test_without_a_terminal_the_text_is_printed_once_and_the_streamer_can_be_used_again():
    streamer, output, during = play(terminal=False, skip_prompt=True)
    assert during.strip() == ""
    assert output.getvalue().strip() == "cf"
    streamer.put(torch.tensor([[0]]))
    streamer.put(torch.tensor([4]))
    streamer.end()
    assert output.getvalue().split() == ["cf", "e"]
