"""Rollouts on vLLM, in this process or on servers."""

from .colocated import ColocatedVLLM
from .engine import VLLMRolloutEngine, load_vllm
from .protocol import Answer, Backend, Request
from .servers import VLLMServers

__all__ = ["Answer", "Backend", "ColocatedVLLM", "Request", "VLLMRolloutEngine", "VLLMServers", "load_vllm"]
