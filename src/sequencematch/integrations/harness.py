"""The model `sequencematch` of EleutherAI's lm-evaluation-harness (`lm_eval`): its tasks, with deletions applied.

Importing this module makes the name known: then `lm_eval.simple_evaluate(model="sequencematch", model_args=...)` works.
`lm_eval` looks for models of other packages nowhere, so on the command line it is
`python -m sequencematch.integrations.lm_eval --model sequencematch --model_args pretrained=FOLDER --tasks ...`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..errors import InputError
from ..models import action_space, load_model, load_tokenizer
from ..rollouts import End, HFRolloutEngine, Retry, SamplingConfig
from .scoring import Continuation, DeletionMass, check_deletion_mass, score_all

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from .decoding import decoding, final_text, seeds_of
except ImportError as error:
    raise InputError("this needs EleutherAI's lm-evaluation-harness; pip install 'sequencematch[lm_eval]'") from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel

OWN = "pretrained, deletion_mass, retry, allow_backspace, backspace_logit_bias, max_deletions, max_actions"
INHERITED = (
    "revision",
    "tokenizer",
    "device",
    "dtype",
    "batch_size",
    "max_batch_size",
    "max_length",
    "trust_remote_code",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
"""Model arguments that mean what they mean for the harness's own `hf`."""


@register_model("sequencematch")
class SequenceMatchLM(HFLM):
    """A language model with deletion actions, as the harness sees it; without them, the same as its `hf`.

    `generate_until` samples in the token MDP and returns what survives, cut at the first stop string. Once a stop
    string stands in the text it ends the completion, and can no longer be deleted. `loglikelihood` and
    `loglikelihood_rolling` are those of `score`. Prompts, chat templates and truncation are those of `hf`.

    Sampling depends on the harness's `--seed`, the prompt, and how often it was asked before; on no other prompt, batch
    size or process.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        *,
        deletion_mass: DeletionMass = "excluded",
        retry: Retry | None = None,
        allow_backspace: bool = True,
        backspace_logit_bias: float = 0.0,
        max_deletions: int | None = None,
        max_actions: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a model.

        Args:
            pretrained: folder or hub id of a model or of adapters, which name their base; or a model, beside
                `tokenizer`.
            deletion_mass: for log-likelihoods, see `score`. `excluded` compares with models that cannot delete.
            retry: for generation, as are the four after it; see `SamplingConfig`. By default `resample`, but `exclude`
                for greedy decoding, which else writes and deletes the same token until its budget is spent.
            allow_backspace: False forbids deletions in generation; log-likelihoods do not look at it.
            backspace_logit_bias: added to deletions' logits.
            max_deletions: the most deletions of a completion.
            max_actions: the most actions of a completion, deletions included.
            **kwargs: see `INHERITED`. The device is by default the accelerator, if there is one.

        Raises InputError for other arguments, and for a model that cannot be loaded.
        """
        _check_arguments(kwargs)
        check_deletion_mass(deletion_mass)
        self.deletion_mass: DeletionMass = deletion_mass
        self._retry = retry
        self._sampling = SamplingConfig(
            retry=retry or "resample",
            allow_backspace=allow_backspace,
            backspace_logit_bias=backspace_logit_bias,
            max_deletions=max_deletions,
            max_actions=max_actions,
        )
        kwargs.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained, backend="causal", **kwargs)
        self.space = action_space(self.model, self.tokenizer)

    def _get_config(self, pretrained: str, **_: Any) -> None:
        """Nothing yet: the config comes with the model, since a folder of adapters has none."""
        self._config: Any = None

    def _create_tokenizer(
        self,
        pretrained: str | PreTrainedModel,
        tokenizer: Any,
        revision: str | None = "main",
        trust_remote_code: bool | None = False,
        add_bos_token: bool | None = None,
        **_: Any,
    ) -> None:
        if tokenizer is None:
            tokenizer = pretrained if isinstance(pretrained, str) else pretrained.name_or_path
        if isinstance(tokenizer, str):
            options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
            tokenizer = load_tokenizer(tokenizer, revision=revision, trust_remote_code=trust_remote_code, **options)
        self.tokenizer = tokenizer

    def _create_model(
        self,
        pretrained: str,
        revision: str | None = "main",
        dtype: str | torch.dtype | None = "auto",
        trust_remote_code: bool | None = False,
        **_: Any,
    ) -> None:
        options = {"trust_remote_code": True} if trust_remote_code else {}
        self._model: Any = load_model(pretrained, revision=revision, dtype=dtype, **options)
        self._config = self._model.config
        if not getattr(self._model, "is_quantized", False):  # those are where they belong
            self._model.to(self.device)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score tokenized requests; see `loglikelihood`."""
        answers = self._score([self._fitted(context, tokens) for _, context, tokens in requests], disable_tqdm)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, of which each token is scored once, after as many as fit before it."""
        windows: list[Continuation] = []
        owner: list[int] = []
        for index, request in enumerate(requests):
            done = 0
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, tokens in map(make_disjoint_window, pairs):
                windows.append(Continuation(context, tokens, written=done))
                owner.append(index)
                done += len(tokens)
        totals = [0.0] * len(requests)
        for index, (log_prob, _) in zip(owner, self._score(windows, disable_tqdm), strict=True):
            totals[index] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Complete prompts; requests of the same options are sampled together, and slots that end are refilled."""
        texts = [""] * len(requests)
        together: defaultdict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            together[json.dumps(request.args[1], sort_keys=True)].append(index)
        seeds = seeds_of([request.args[0] for request in requests])
        with self._progress("generate_until", len(requests), disable_tqdm) as bar:
            for indices in together.values():
                config = self._decoding(requests[indices[0]].args[1])
                prompts = [self._prompt(requests[index].args[0], config) for index in indices]
                longest = max(prompts, key=len)
                rows = self._rows(longest, longest[:1] * config.max_completion_length)
                engine = HFRolloutEngine(self.model, self.space, rows, self.tokenizer)
                for event in engine.stream(prompts, config, seeds=[seeds[index] for index in indices]):
                    if isinstance(event, End):
                        index, tokens = indices[event.index], event.rollout.completion
                        texts[index] = final_text(self.tokenizer, tokens, config, self.think_end_token)
                        self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                        bar.update(1)
        return texts

    def _score(self, continuations: Sequence[Continuation], disable_tqdm: bool) -> list[tuple[float, bool]]:
        answers: dict[int, tuple[float, bool]] = {}
        if continuations:
            longest = max(continuations, key=lambda each: len(each.context) + len(each.tokens))
            rows = self._rows(longest.context, longest.tokens)
            with self._progress("loglikelihood", len(continuations), disable_tqdm) as bar:
                for found in score_all(self.model, continuations, self.space, self.deletion_mass, rows):
                    answers.update(found)
                    bar.update(len(found))
        return [answers[index] for index in range(len(continuations))]

    def _fitted(self, context: list[int], tokens: list[int]) -> Continuation:
        """The end of the context, as much as fits before the continuation; the last token needs no room."""
        room = self.max_length + 1 - len(tokens)
        if room < 1:
            raise InputError(
                f"a continuation of {len(tokens)} tokens does not fit max_length={self.max_length}; raise it as far as "
                "the model allows, or leave the task out"
            )
        return Continuation((context or [self.prefix_token_id])[-room:], tokens)

    def _decoding(self, gen_kwargs: Mapping[str, Any]) -> SamplingConfig:
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        return decoding(gen_kwargs, self._sampling, self._retry, end, self.max_gen_toks)

    def _prompt(self, context: str, config: SamplingConfig) -> list[int]:
        room = self.max_length - config.max_completion_length
        if room < 1:
            raise InputError(
                f"max_gen_toks={config.max_completion_length} leaves no room for a prompt in "
                f"max_length={self.max_length}; lower it with --gen_kwargs max_gen_toks=..."
            )
        return self.tok_encode(context, left_truncate_len=room) or [self.prefix_token_id]

    def _rows(self, context: list[int], tokens: list[int]) -> int:
        """The batch size; `auto` is as many forwards of the longest text as fit, found out at each call."""
        if self.batch_size != "auto":
            return self.batch_size
        self.batch_sizes = {0: self._detect_batch_size([(None, context, tokens)])}
        return self.batch_sizes[0]

    def _progress(self, what: str, total: int, disable_tqdm: bool) -> tqdm:
        return tqdm(total=total, desc=f"Running {what} requests", disable=disable_tqdm or self.rank != 0)


def _check_arguments(kwargs: Mapping[str, Any]) -> None:
    unknown = [name for name in kwargs if name not in INHERITED]
    if unknown:
        raise InputError(
            f"the model 'sequencematch' has no argument '{unknown[0]}'; choose from {OWN}, {', '.join(INHERITED)}"
        )
