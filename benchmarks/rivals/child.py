"""What the children share: the model, a tokenizer, and rounds over standard input and output.

Both rivals take prompts as text, so a prompt becomes its token ids as words, and a trivial tokenizer reads them back.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, logging

from rivals import Job


class OutOfActionsError(Exception):
    """A completion has taken all the actions that it may."""


class Tally:
    """Counts actions, and limits those of one completion."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.actions = self.deletions = 0
        self._left = limit

    def start(self) -> None:
        """A completion begins."""
        self._left = self.limit

    def count(self, deletion: bool) -> None:
        """Count an action.

        Raises:
            OutOfActionsError: it was the last.
        """
        self.actions += 1
        self.deletions += deletion
        self._left -= 1
        if not self._left:
            raise OutOfActionsError


Complete = Callable[[str], None]
"""Completes a prompt by the rival, and has a `Tally` count the actions; may raise `OutOfActionsError`."""
DEFAULT_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
"""The rotary embedding of a config that names none."""
Prepare = Callable[[PreTrainedModel, PreTrainedTokenizerFast, Job, Tally], Complete]


def serve(prepare: Prepare) -> None:
    """Load the job named on the command line, say `ready`, and complete prompts by request until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the libraries print must not look like an answer
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    logging.set_verbosity_error()  # a warning left in the errors would pass for the reason of an end
    torch.set_num_threads(job.threads)
    model, words, tally = load_model(job), words_of(job), Tally(job.max_actions)
    complete = prepare(model, tokenizer_of(words, job), job, tally)
    texts = itertools.cycle([" ".join(words[token] for token in prompt) for prompt in job.prompts])
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run_round(complete, tally, texts, **json.loads(line))), file=answers, flush=True)


def run_round(complete: Complete, tally: Tally, texts: itertools.cycle[str], count: int, seed: int) -> dict[str, float]:
    """Complete the next `count` prompts."""
    torch.manual_seed(seed)
    tally.actions = tally.deletions = 0
    start = time.perf_counter()
    for text in itertools.islice(texts, count):
        tally.start()
        complete(text)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "actions": tally.actions, "deletions": tally.deletions, "completions": count}


def load_model(job: Job) -> PreTrainedModel:
    """The job's model with its bias, for inference.

    Raises:
        ValueError: the model would not be the one that was saved.
    """
    if config_of(job).get("rope_parameters", DEFAULT_ROPE) != DEFAULT_ROPE:
        raise ValueError("transformers 4 does not read rope_parameters, so only default rotary embeddings will do")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto").eval()
    model.lm_head.bias = torch.nn.Parameter(torch.load(job.bias, weights_only=True).to(model.dtype))
    return model.requires_grad_(False)


def config_of(job: Job) -> dict[str, Any]:
    """The model's config as it was saved."""
    return json.loads((Path(job.model) / "config.json").read_text())


def words_of(job: Job) -> list[str]:
    """A word for each token: its number, but for the two with a meaning."""
    words = [str(token) for token in range(config_of(job)["vocab_size"])]
    words[job.eos], words[job.backspace] = "<eos>", "<backspace>"
    return words


def tokenizer_of(words: list[str], job: Job) -> PreTrainedTokenizerFast:
    """Splits at whitespace. Padding is eos: transformers would mask any other padding token out of a context."""
    tokenizer = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token=words[job.eos]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    eos = words[job.eos]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=eos, clean_up_tokenization_spaces=False
    )
