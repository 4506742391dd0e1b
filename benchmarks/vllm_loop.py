"""What deletions cost on vLLM: our loop against plain generation of as many actions, in one run.

Runs where vLLM is installed (`make .venv-vllm/installed`): .venv-vllm/bin/python benchmarks/vllm_loop.py --quick
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from dataclasses import dataclass

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch
from measure import Spread, interleave_calls
from report import console, finish, parse, parser, table
from transformers import LlamaConfig, LlamaForCausalLM

from sequencematch.mdp import ActionSpace, Deletion
from sequencematch.models import save_merged
from sequencematch.rollouts import SamplingConfig
from sequencematch.rollouts.vllm import ColocatedVLLM, VLLMRolloutEngine
from sequencematch.rollouts.vllm.colocated import on_cpu

EOS, BACKSPACE = 1, 2
RATES = (0.05, 0.2)


@dataclass(frozen=True)
class Load:
    """A model and what is sampled from it."""

    hidden: int
    layers: int
    heads: int
    vocab: int
    dtype: str
    prompts: int
    prompt: int
    actions: int


LOADS = {
    "tiny": Load(64, 2, 2, 512, "float32", 16, 16, 16),
    "cpu": Load(384, 6, 6, 32_000, "float32", 64, 64, 64),
    "gpu": Load(2048, 16, 32, 128_000, "bfloat16", 256, 128, 128),
}


class Bench:
    """vLLM with one random model, and the ways to sample as many actions for every prompt."""

    def __init__(self, load: Load, device: str) -> None:
        self.load = load
        self.space = ActionSpace(load.vocab, EOS, (Deletion(BACKSPACE, 1),))
        config = LlamaConfig(
            vocab_size=load.vocab,
            hidden_size=load.hidden,
            intermediate_size=4 * load.hidden,
            num_hidden_layers=load.layers,
            num_attention_heads=load.heads,
            num_key_value_heads=load.heads,
            max_position_embeddings=load.prompt + 2 * load.actions,
            bos_token_id=None,
            eos_token_id=EOS,
        )
        torch.manual_seed(0)
        engine_args = on_cpu() if device == "cpu" else {}
        self.policy = LlamaForCausalLM(config).to(getattr(torch, load.dtype))
        with tempfile.TemporaryDirectory() as folder:
            save_merged(self.policy, folder)
            self.backend = ColocatedVLLM(folder, concurrency=load.prompts, **{"dtype": load.dtype, **engine_args})
        self.engine = VLLMRolloutEngine(self.backend, self.space)
        rng = np.random.default_rng(0)
        self.prompts = rng.integers(3, load.vocab, (load.prompts, load.prompt)).tolist()
        self.round = 0
        self.rates: dict[float, list[float]] = {rate: [] for rate in RATES}

    def config(self, rate: float) -> SamplingConfig:
        """So many actions, a share of them deletions: the random model finds all actions about equally likely."""
        self.round += 1
        ends: dict[int, float] = {EOS: -math.inf}
        bias = math.log(rate / (1 - rate) * (self.load.vocab - 2)) if rate else 0.0
        return SamplingConfig(
            max_completion_length=self.load.actions,
            max_actions=self.load.actions,
            logit_bias=ends,
            backspace_logit_bias=bias,
            allow_backspace=rate > 0,
            seed=self.round,
        )

    def ours(self, rate: float) -> None:
        """Our loop."""
        rollouts = self.engine.rollout(self.prompts, self.config(rate))
        actions = np.concatenate([rollout.trajectory.actions for rollout in rollouts])
        assert len(actions) == self.load.prompts * self.load.actions
        if rate:
            self.rates[rate].append(float((actions == BACKSPACE).mean()))

    def handover(self) -> None:
        """New weights: written to a folder, read and labelled by vLLM, what it had cached forgotten."""
        with tempfile.TemporaryDirectory() as folder:
            save_merged(self.policy, folder)
            self.engine.load(folder, self.round)

    def plain(self) -> None:
        """vLLM alone: one request for each prompt, with the log-probabilities of what it samples."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.round += 1
        engine = self.backend.engine
        for number, prompt in enumerate(self.prompts):
            parameters = SamplingParams(
                max_tokens=self.load.actions,
                ignore_eos=True,
                seed=1000 * self.round + number,
                logprobs=0,
                detokenize=False,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(f"plain {self.round} {number}", {"prompt_token_ids": prompt}, parameters)
        sampled = 0
        while engine.has_unfinished_requests():
            sampled += sum(len(output.outputs[0].token_ids) for output in engine.step() if output.finished)
        assert sampled == self.load.prompts * self.load.actions


def main() -> None:
    """Run, print, and write benchmarks/results/vllm_loop-DEVICE.json."""
    args = parse(parser(__doc__, list(LOADS)))
    size = args.size or ("gpu" if args.device == "cuda" else "cpu")
    bench = Bench(LOADS[size], args.device)
    calls = {"plain": bench.plain, "loop without deletions": lambda: bench.ours(0.0)}
    calls |= {f"loop at {rate:.0%}": lambda rate=rate: bench.ours(rate) for rate in RATES}
    calls["handover"] = bench.handover
    start = time.perf_counter()
    times = interleave_calls(calls, 60 if args.quick else 400, 1, 3, 5 if args.quick else 15)
    console.print(f"{len(times['plain'])} rounds in {time.perf_counter() - start:.0f} s")
    names = {"0": "loop without deletions", **{f"{rate:.0%}"[:-1]: f"loop at {rate:.0%}" for rate in RATES}}
    ratios = {
        f"loop_vs_plain_{key}": Spread.of(
            [plain / ours for plain, ours in zip(times["plain"], times[name], strict=True)]
        )
        for key, name in names.items()
    }
    ratios["handover_time_vs_plain"] = Spread.of(
        [handover / plain for handover, plain in zip(times["handover"], times["plain"], strict=True)]
    )
    actions = bench.load.prompts * bench.load.actions
    rows = [(name, actions / statistics.median(found)) for name, found in times.items() if name != "handover"]
    table("actions per second, medians", ("", "actions/s"), rows)
    finish("vllm_loop", args, ratios, bench.load, times, deletion_rates=bench.rates)


if __name__ == "__main__":
    main()
