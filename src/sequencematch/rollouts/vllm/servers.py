"""vLLM on servers: any number of replicas of one model, over HTTP."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from ...errors import InputError, reason_of
from ..sampling import SamplingConfig
from .parameters import Knobs
from .protocol import Answer, Request

T = TypeVar("T")

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds to wait before each further try, while no replica answers; the last again and again."""
PATIENCE = 40.0
"""Seconds after which it is given up, unless told otherwise."""
REST = 5.0
"""Seconds that a replica which has failed is asked last."""


class Replica:
    """One server."""

    def __init__(self, url: str, concurrency: int, timeout: float, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        self._session.mount("http", HTTPAdapter(pool_maxsize=concurrency))
        if api_key is not None:
            self._session.headers["Authorization"] = f"Bearer {api_key}"
        self._under_way = 0
        self._rests_until = 0.0
        self._loading = threading.Lock()

    @property
    def eagerness(self) -> tuple[bool, int]:
        """The lower, the sooner it is asked: whether it failed of late, and what it is at work on."""
        return time.monotonic() < self._rests_until, self._under_way

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers. Raises RequestException if it does not, and InputError if it refuses."""
        self._under_way += 1
        try:
            answer = self._session.request(method, self.url + path, json=body, timeout=self._timeout)
            if 400 <= answer.status_code < 500:
                raise InputError(f"the vLLM server {self.url} refuses {path}: {_message(answer)}")
            answer.raise_for_status()
            return answer.json() if answer.content else None
        except requests.RequestException:
            self._rests_until = time.monotonic() + REST
            raise
        finally:
            self._under_way -= 1

    def load(self, folder: str, version: str) -> None:
        """Let it take over weights, unless it has. Raises RequestException if it does not answer."""
        with self._loading:
            if self.call("get", "/weight_info")["weight_version"] == version:
                return
            self.call("post", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
            self.call("post", "/reset_prefix_cache")
            self.call("post", "/update_weight_version", {"new_version": version})


def _try_to_load(replica: Replica, folder: str, version: str) -> None:
    """Let a replica take over weights if it can be reached."""
    with suppress(requests.RequestException):
        replica.load(folder, version)


def _message(answer: requests.Response) -> str:
    """What a server says is wrong."""
    try:
        found = answer.json()
        return str(found.get("error", found).get("message", found))
    except (ValueError, AttributeError):
        return answer.text or answer.reason


def _versions(choice: dict[str, Any]) -> set[str]:
    """The labels of the weights that sampled an answer."""
    return {span["version"] for span in choice.get("weight_versions") or ()}


def _served(models: list[dict[str, Any]], name: str | None) -> tuple[str, int | None]:
    """The name and the longest string of the model that is asked for. Raises InputError if it is not served."""
    named = {model["id"]: model.get("max_model_len") for model in models}
    if name is None and len(named) == 1:
        (name,) = named
    if name is None or name not in named:
        raise InputError(f"the vLLM server has the models {', '.join(named)}, not {name!r}; name one of them")
    return name, named[name]


class VLLMServers:
    """Replicas of vLLM's API server, which share the requests; one that fails is passed over until it answers again.

    A request says all that decides its answer, its seed included, so one that is sent again to another replica is
    neither lost nor doubled.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        model: str | None = None,
        concurrency: int = 64,
        timeout: float = 300.0,
        patience: float | None = None,
        api_key: str | None = None,
    ) -> None:
        """Find the servers.

        Args:
            base_urls: of each replica, as in `http://host:8000`; or all of them in one string, separated by commas.
            model: the name that the servers serve it under; what they serve if there is one only.
            concurrency: requests under way at each replica.
            timeout: seconds that a request may take.
            patience: seconds to go on trying while none answers, as when they are started anew; None is PATIENCE.
            api_key: if the servers ask for one.

        Raises InputError if none of them answers, or does not serve the model.
        """
        given = base_urls.split(",") if isinstance(base_urls, str) else base_urls
        urls = [url.strip() for url in given if url.strip()]
        if not urls:
            raise InputError("give the address of at least one vLLM server, as in http://localhost:8000")
        self.replicas = [Replica(url, concurrency, timeout, api_key) for url in urls]
        self.concurrency = concurrency * len(urls)
        self._patience = PATIENCE if patience is None else patience
        self._stopped = threading.Event()
        self._weights: tuple[str, str] | None = None
        served = self._any(lambda replica: replica.call("get", "/v1/models"))["data"]
        self.model, self.max_length = _served(served, model)
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="vllm")
        self._under_way: set[Future[Answer]] = set()

    def open(self, config: SamplingConfig, stops: tuple[int, ...], deletions: tuple[int, ...]) -> None:
        """See `Backend.open`."""
        self._knobs = Knobs(config, stops, deletions)
        self._stopped.clear()

    def submit(self, request: Request) -> None:
        """See `Backend.submit`."""
        self._under_way.add(self._pool.submit(self._ask, request))

    def poll(self) -> list[Answer]:
        """See `Backend.poll`."""
        done, self._under_way = wait(self._under_way, return_when=FIRST_COMPLETED)
        return [future.result() for future in done]

    def abort(self) -> None:
        """See `Backend.abort`. What a server is at work on it ends alone, and nobody reads it."""
        self._stopped.set()
        for future in self._under_way:
            future.cancel()
        self._under_way = set()

    def load(self, folder: str, version: str) -> None:
        """See `Backend.load`. A replica that cannot be reached now takes them over before it answers again.

        The servers must read the same folder, and have VLLM_SERVER_DEV_MODE=1 in their environment.
        """
        self.expect(folder, version)
        self._stopped.clear()  # what was dropped is; this is waited for
        self._any(lambda replica: replica.load(folder, version))  # one at least, or nobody could sample
        wait([self._pool.submit(_try_to_load, replica, folder, version) for replica in self.replicas])

    def expect(self, folder: str, version: str) -> None:
        """See `Backend.expect`."""
        self._weights = folder, version

    def _ask(self, request: Request) -> Answer:
        body = {
            "model": self.model,
            "token_ids": list(request.token_ids),
            "sampling_params": self._knobs.parameters(request),
        }
        return self._any(lambda replica: self._answer(replica, request.row, body))

    def _answer(self, replica: Replica, row: int, body: dict[str, Any]) -> Answer:
        """What a replica samples, with the weights that it should have: one that was started anew has its old ones."""
        (choice,) = replica.call("post", "/inference/v1/generate", body)["choices"]
        if self._weights is not None and _versions(choice) != {self._weights[1]}:
            replica.load(*self._weights)
            (choice,) = replica.call("post", "/inference/v1/generate", body)["choices"]
        found = (
            {entry["token_id"]: entry["logprob"] for entry in (at, *at["top_logprobs"])}
            for at in choice["logprobs"]["content"]
        )
        return self._knobs.answer(row, choice["token_ids"], found, sorted(_versions(choice)))

    def _any(self, ask: Callable[[Replica], T]) -> T:
        """The answer of whichever replica gives one. Raises InputError if none does for as long as patience lasts."""
        end = time.monotonic() + self._patience
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            reasons = []
            for replica in sorted(self.replicas, key=lambda replica: replica.eagerness):
                try:
                    return ask(replica)
                except requests.RequestException as error:
                    reasons.append(f"{replica.url}: {reason_of(error)}")
            left = end - time.monotonic()
            if left <= 0 or self._stopped.wait(min(pause, left)):
                break
        raise InputError(
            f"no vLLM server answers ({'; '.join(reasons)}); check that they run and that the addresses are right"
        )
