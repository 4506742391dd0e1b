"""Perplexity of held-out data under a policy that may also delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mdp import ActionSpace
from ..models import check_fits, evaluation_mode, head_values, layout_of
from ..models.prepare import run_tree
from ..noise import demonstrate
from ..tree import collate_trajectories
from .statistics import ratio_interval

if TYPE_CHECKING:
    from ..data import Example


def data_perplexity(
    model: Any, space: ActionSpace, examples: Sequence[Example], batch_size: int = 16
) -> dict[str, Any]:
    """Perplexity per token of clean completions, `<eos>` included, each given its prompt.

    In two ways, which are equal for a model without deletions:

    - `perplexity`: exp of the mean of -log pi(a|s). A policy that wants to delete where the data goes on loses what it
      gives to deletions, as it does when it is sampled from.
    - `perplexity_no_deletion`: exp of the mean of -log(pi(a|s) / (1 - pi(deletion|s))), of the policy with deletions
      forbidden: how well it knows the data where it does not delete. This one compares with other language models.

    Args:
        model: the causal language model, on its device; see `prepare_model`. It is evaluated in evaluation mode.
        space: the action space that decides what is legal.
        examples: the demonstrations. One with an empty completion counts for nothing.
        batch_size: examples in one forward pass.

    Returns:
        plain data: both perplexities by name; `intervals`, name -> [low, high], at 95% and over examples (the bootstrap
        of `ratio_interval`); `tokens`, their number; and lists with a place for each example, `nll` and
        `nll_no_deletion`, the negative log-likelihoods of its completion in nats, and `lengths`, its tokens.

    Raises InputError without any completion token, for an example that does not fit the model's positions, a
    completion with a deletion in it, or log-probabilities that are not finite.
    """
    _check(model, space, examples)
    sums = [
        _log_losses(model, space, examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)
    ]
    nll, nll_no_deletion = np.concatenate(sums, axis=1)
    if not np.isfinite(nll).all():
        raise InputError("the model's log-probabilities of the data are not finite; its weights may have diverged")
    lengths = [len(example.completion_ids) for example in examples]
    found: dict[str, Any] = {"intervals": {}}
    for name, losses in (("perplexity", nll), ("perplexity_no_deletion", nll_no_deletion)):
        interval = ratio_interval(losses, lengths)
        with np.errstate(over="ignore"):  # a model may be as bad as that
            found[name], *ends = np.exp([interval.estimate, interval.low, interval.high]).tolist()
        found["intervals"][name] = ends
    return found | {
        "tokens": sum(lengths),
        "nll": nll.tolist(),
        "nll_no_deletion": nll_no_deletion.tolist(),
        "lengths": lengths,
    }


def _check(model: Any, space: ActionSpace, examples: Sequence[Example]) -> None:
    for index, example in enumerate(examples):
        check_fits(model, len(example.prompt_ids), len(example.completion_ids))
        if not space.by_token.keys().isdisjoint(example.completion_ids):
            raise InputError(f"example {index} has a deletion in its completion; perplexity is of clean data")
    if not any(example.completion_ids for example in examples):
        raise InputError("there is no completion to take the perplexity of; give at least one example")


def _log_losses(model: Any, space: ActionSpace, examples: Sequence[Example]) -> np.ndarray:
    """float64 [2, examples]: -log of the completions' probabilities, with deletions allowed and without."""
    trajectories = [demonstrate(example, [], space) for example in examples]
    batch = collate_trajectories(trajectories, space, layout_of(model)).to(model.device)
    lengths = batch.completion_length[batch.state]

    def read(head: Any, hidden: Tensor, transform: Any) -> list[Tensor]:
        hidden, states = hidden.index_select(0, batch.state), torch.arange(len(batch.state), device=hidden.device)
        # Nothing may be deleted from a completion of no tokens. Exact where 1 - pi(deletion|s) would be rounded away.
        both = [
            head_values(head, hidden, length, states, batch.action, space, transform)
            for length in (lengths, torch.zeros_like(lengths))
        ]
        return [v - q for q, v in both]

    with evaluation_mode(model), torch.no_grad():
        losses = torch.stack(run_tree(model, batch, read)).cpu().double()
    return losses.new_zeros(2, len(examples)).index_add_(1, batch.trajectory.cpu(), losses).numpy()
