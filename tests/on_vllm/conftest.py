"""Tests with vLLM itself; none is collected where it is not installed. `make test-vllm` makes an environment for it."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
sys.path.append(str(Path(__file__).parents[1] / "rollouts"))

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
