"""Deletion for `model.generate`: `model.generate(..., custom_generate=sequencematch.backspace_generate)`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..errors import InputError
from ..mdp import ActionSpace, Deletion
from .engine import HFRolloutEngine
from .events import Append, Delete, End, Event
from .plugins import Plugins
from .result import Rollout
from .sampling import Retry, SamplingConfig

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

WARPERS: dict[type, str] = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}
"""Processors that are options of `SamplingConfig`, and the name that the option has in both."""
NOT_KEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass
class BackspaceOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns with `return_dict_in_generate=True`: the sequences, and all that was done."""

    rollouts: tuple[Rollout, ...] | None = None
    """One for each sequence: its actions, deletions included, with their log-probabilities, and why it ended."""


def backspace_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    generation_config: GenerationConfig | None = None,
    backspace_logit_bias: float = 0.0,
    allow_backspace: bool = True,
    max_deletions: int | None = None,
    max_actions: int | None = None,
    retry: Retry = "resample",
    seed: int | None = None,
    generation_batch_size: int = 64,
    **model_kwargs: Any,
) -> Tensor | BackspaceOutput:
    """Sample as `model.generate` does, but let the model take tokens back; give it to `generate` as `custom_generate`.

        model.generate(**tokenizer(texts, return_tensors="pt", padding=True, padding_side="left"), do_sample=True,
                       max_new_tokens=200, custom_generate=backspace_generate, backspace_logit_bias=1.0)

    The first arguments and the last come from `generate`: generation config, logits processors, stopping criteria,
    left-padded batches, `num_return_sequences`, `max_new_tokens` and so on mean what they mean there. Lengths count
    surviving tokens. Processors and criteria are called on one sequence at a time, as it stands, and roll back with it.
    A `streamer` is told what `RetractingTextStreamer` can take back; any other, which cannot, gets tokens once
    they are final: at the end, unless nothing can be deleted.

    Args:
        model: with the deletion actions that `add_backspace_token` gave it.
        input_ids: int64 [B, L], padded on the left.
        logits_processor: as `generate` prepared them, those of the generation config included.
        stopping_criteria: likewise.
        generation_config: the rest of the options.
        backspace_logit_bias, allow_backspace, max_deletions, max_actions, retry: see `SamplingConfig`.
        seed: of the sampling; drawn from torch's global generator if not given, so that `set_seed` fixes it.
        generation_batch_size: sequences under way at a time.
        model_kwargs: of these, `attention_mask`, [B, L] with 0 on padding, is used.

    Returns:
        int64 [B, L + longest completion], each row its prompt, completion and `<eos>`, padded on the right; or a
        `BackspaceOutput` if the generation config says `return_dict_in_generate`.

    Raises InputError for a model without deletion actions, no eos token, beam search, or outputs that are not kept.
    """
    assert generation_config is not None
    _check(generation_config, input_ids)
    space, stop = _action_space(model, generation_config, allow_backspace)
    options, processors = _split_warpers(list(logits_processor))
    config = SamplingConfig(
        **(options if generation_config.do_sample else {"temperature": 0.0}),
        max_completion_length=generation_config.max_length - input_ids.shape[1],
        backspace_logit_bias=backspace_logit_bias,
        allow_backspace=allow_backspace,
        max_deletions=max_deletions,
        max_actions=max_actions,
        retry=retry,
        stop_token_ids=stop,
        seed=int(torch.randint(2**62, ())) if seed is None else seed,
    )
    ours = (MaxLengthCriteria, EosTokenCriteria)
    criteria = [criterion for criterion in stopping_criteria if not isinstance(criterion, ours)]
    engine = HFRolloutEngine(model, space, generation_batch_size)
    paddings, prompts = _unpad(input_ids, model_kwargs.get("attention_mask"))
    rows = engine.start(prompts, config, paddings=paddings)
    certain = not (space.deletions and allow_backspace)
    tell = _teller(_streamer_of_generate(), len(rows), space.eos_token_id, certain)
    events: list[Event] = []
    try:
        for _ in engine.run(rows, config, Plugins(processors, criteria, own=_own), events):
            for event in events:
                tell(event)
            events.clear()
    except KeyboardInterrupt:
        pass  # what there is so far is returned
    rollouts = tuple(row.result(0) for row in rows)
    return _output(input_ids, rollouts, space, generation_config)


def _check(config: GenerationConfig, input_ids: Tensor) -> None:
    if config.num_beams not in (None, 1):
        raise InputError("backspace_generate samples or decodes greedily; set num_beams to 1")
    if input_ids.shape[1] == 0:
        raise InputError("backspace_generate needs input_ids with at least one token a row; it takes no inputs_embeds")
    for name in NOT_KEPT:
        if getattr(config, name, False):
            raise InputError(f"backspace_generate keeps no {name[7:]}; BackspaceOutput.rollouts has log-probabilities")


def _action_space(model: Any, config: GenerationConfig, deletes: bool) -> tuple[ActionSpace, tuple[int, ...]]:
    """The model's actions, and further tokens that end a sequence."""
    lengths = getattr(model.config, "deletion_actions", None) or {}
    tokens = getattr(model.config, "deletion_token_ids", None) or {}
    if deletes and not (lengths and lengths.keys() == tokens.keys()):
        raise InputError(
            "the model's config names no deletion actions; call add_backspace_token(model, tokenizer) and train it, or "
            "generate with allow_backspace=False"
        )
    eos = config.eos_token_id
    first, *others = [eos] if isinstance(eos, int) else eos or [None]
    if first is None:
        raise InputError("there is no eos token; set eos_token_id in the generation config")
    deletions = tuple(Deletion(tokens[text], length) for text, length in lengths.items() if text in tokens)
    return ActionSpace(len(model.get_output_embeddings().weight), first, deletions), tuple(others)


def _split_warpers(processors: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    """Options of `SamplingConfig`, and the processors that are left.

    Only if the warpers that it knows come last, in its own order; otherwise all are left, in theirs.
    """
    names = list(WARPERS)
    known = [processor for processor in processors if type(processor) in WARPERS]
    order = [names.index(type(processor)) for processor in known]
    if processors[len(processors) - len(known) :] != known or order != sorted(set(order)):
        return {}, processors
    options = {WARPERS[type(warper)]: getattr(warper, WARPERS[type(warper)]) for warper in known}
    return options, processors[: len(processors) - len(known)]


def _own(processor: Any, index: int) -> Any:
    """The processor of one row, of those which transformers makes for a whole batch."""
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(index, ids), num_beams=1)
    if isinstance(processor, RepetitionPenaltyLogitsProcessor) and isinstance(processor.prompt_ignore_length, Tensor):
        return RepetitionPenaltyLogitsProcessor(processor.penalty, int(processor.prompt_ignore_length[index]))
    return processor


def _unpad(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[list[int]], list[list[int]]]:
    """The padding and the prompt of each row. Raises InputError unless the padding is on the left."""
    if attention_mask is None:
        return [[] for _ in input_ids], input_ids.tolist()
    lengths = attention_mask.bool().sum(-1).tolist()
    paddings, prompts = [], []
    for ids, seen, length in zip(input_ids.tolist(), attention_mask.bool().tolist(), lengths, strict=True):
        start = len(ids) - length
        if not all(seen[start:]):
            raise InputError("pad prompts on the left: tokenizer(..., padding=True, padding_side='left')")
        paddings.append(ids[:start])
        prompts.append(ids[start:])
    return paddings, prompts


def _streamer_of_generate() -> Any:
    """The `streamer` that `generate` was called with.

    transformers hands a callable everything but this, so an iterating streamer would wait for its tokens forever.
    """
    frame = sys._getframe(2)
    return frame.f_locals.get("streamer") if frame.f_code.co_name == "generate" else None


def _teller(streamer: Any, rows: int, eos: int, certain: bool) -> Callable[[Event], None]:
    """What tells a streamer of events as they come, or at the end if it cannot retract and tokens are not `certain`."""
    if streamer is None:
        return lambda event: None
    if rows > 1:
        raise InputError("a streamer follows one sequence; generate one at a time, or watch HFRolloutEngine.stream")
    live = certain or hasattr(streamer, "retract")

    def tell(event: Event) -> None:
        if isinstance(event, End):
            for token in () if live else event.rollout.completion:
                streamer.put(torch.tensor([token]))
            if event.rollout.trajectory.terminated:
                streamer.put(torch.tensor([eos]))
            streamer.end()
        elif live and isinstance(event, Append):
            streamer.put(torch.tensor([event.token_id]))
        elif live and isinstance(event, Delete):
            streamer.retract(event.count)

    return tell


def _output(
    input_ids: Tensor, rollouts: tuple[Rollout, ...], space: ActionSpace, config: GenerationConfig
) -> Tensor | BackspaceOutput:
    endings = [[*one.completion, *[space.eos_token_id] * one.trajectory.terminated] for one in rollouts]
    pad = space.eos_token_id if config.pad_token_id is None else config.pad_token_id
    longest = max(map(len, endings))
    padded = [ending + [pad] * (longest - len(ending)) for ending in endings]
    sequences: Any = torch.cat(
        [input_ids, torch.tensor(padded, dtype=torch.long).view(len(rollouts), -1).to(input_ids)], -1
    )
    if config.return_dict_in_generate:
        return BackspaceOutput(sequences=sequences, rollouts=rollouts)
    return sequences
