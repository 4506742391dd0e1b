"""How fast a run is, and what it spends its time on."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("data", "rollout", "forward_backward")


class Speed:
    """A stopwatch for the parts of training, and a counter of what was trained. Seconds are those of this process."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        """What was counted since the beginning."""
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Time what happens inside as `part`, one of PARTS; an inner part's time is not the outer one's."""
        start = time.perf_counter()
        self._open.append(part)
        try:
            yield
        finally:
            self._open.pop()
            elapsed = time.perf_counter() - start
            self._seconds[part] += elapsed
            if self._open:
                self._seconds[self._open[-1]] -= elapsed

    def count(self, **things: int) -> None:
        """Add to the numbers of nodes and actions trained, and of `rollout_actions` sampled."""
        self._counts.update(things)
        self.totals.update(things)

    def report(self) -> dict[str, float]:
        """Everything per second, and each part's share of the time, since the last report."""
        now = time.perf_counter()
        wall, self._since = now - self._since, now
        rates = {f"speed/{name}_per_second": number / wall for name, number in self._counts.items()}
        shares = {f"speed/{part}_share": self._seconds[part] / wall for part in PARTS}
        self._seconds.clear()
        self._counts.clear()
        return rates | shares
