"""What samples the policy's rollouts: this process, or vLLM with weights that the trainer hands over."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed
from transformers import PreTrainedTokenizerBase

from ..mdp import ActionSpace
from ..models import save_merged
from ..rollouts import HFRolloutEngine, RolloutEngine
from .config import SequenceMatchConfig


def make_engine(
    policy: Any, tokenizer: PreTrainedTokenizerBase, space: ActionSpace, args: SequenceMatchConfig
) -> RolloutEngine:
    """The engine that the options ask for.

    Raises InputError if vLLM is not installed, or its servers do not answer.
    """
    if not args.use_vllm:
        return HFRolloutEngine(policy, space, args.generation_batch_size)
    from ..rollouts.vllm import ColocatedVLLM, VLLMRolloutEngine, VLLMServers
    from ..rollouts.vllm.colocated import on_cpu

    if args.vllm_mode == "server":
        seconds = args.vllm_server_timeout
        servers = VLLMServers(args.vllm_server_base_url or "", timeout=seconds, patience=seconds)
        return PolicyOnVLLM(VLLMRolloutEngine(servers, space, tokenizer), policy, args, shared=True)
    with tempfile.TemporaryDirectory() as folder:
        save_merged(policy, folder)
        backend = ColocatedVLLM(
            folder,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_len=args.vllm_max_model_length,
            **{"dtype": str(policy.dtype).removeprefix("torch."), **on_cpu()},
        )
    return PolicyOnVLLM(VLLMRolloutEngine(backend, space, tokenizer), policy, args, shared=False)


class PolicyOnVLLM:
    """vLLM, and the policy whose weights it samples with: those of the last `update`."""

    def __init__(self, engine: Any, policy: Any, args: SequenceMatchConfig, shared: bool) -> None:
        """shared: whether all ranks use the same vLLM, to which one of them hands the weights."""
        self.space = engine.space
        self._engine = engine
        self._policy = policy
        self._args = args
        self._shared = shared

    def update(self, policy_version: int) -> None:
        """See `RolloutEngine.update`; all ranks together. The weights go through a folder that vLLM reads."""
        base = Path(self._args.vllm_weights_dir or Path(str(self._args.output_dir)) / "vllm").absolute()
        folder = base / f"step-{policy_version}"
        if self._args.process_index == 0:
            save_merged(self._policy, folder)
        _wait_for_all()
        if self._args.process_index == 0 or not self._shared:
            self._engine.load(str(folder), policy_version)
        else:
            self._engine.expect(str(folder), policy_version)
        _wait_for_all()
        if self._args.process_index == 0:
            for other in base.glob("step-*"):
                if other != folder:
                    shutil.rmtree(other)

    def rollout(self, prompts: Any, config: Any, **kwargs: Any) -> Any:
        """See `RolloutEngine.rollout`."""
        return self._engine.rollout(prompts, config, **kwargs)


def _wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
