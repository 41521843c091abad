"""Numbers of a server, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping

# Seconds: from one look at what was drawn to a long answer.
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_HELP = {
    "requests_total": "Requests by path and status.",
    "prompt_tokens_total": "Tokens of prompts.",
    "completion_tokens_total": "Tokens of completions.",
    "request_seconds": "Seconds from a request to the end of its reply.",
    "first_token_seconds": "Seconds from a request to its first token.",
    "rows_running": "Completions that have a row.",
    "rows_waiting": "Completions that wait for one.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts and durations since the server began."""

    def __init__(self) -> None:
        # Counted in the event loop, read in it too; tests and pages may do so from threads.
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], float] = defaultdict(float)
        self._times: dict[tuple[str, Labels], list[int]] = {}
        self._sums: dict[tuple[str, Labels], float] = defaultdict(float)

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Adds to a count.

        Args:
          name: Its name.
          value: How much is added.
          labels: What it is counted by.
        """
        with self._lock:
            self._counts[name, tuple(labels.items())] += value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Notes a duration.

        Args:
          name: Its name.
          seconds: The duration.
          labels: What it is counted by.
        """
        key = (name, tuple(labels.items()))
        with self._lock:
            buckets = self._times.setdefault(key, [0] * (len(_BUCKETS) + 1))
            buckets[bisect_left(_BUCKETS, seconds)] += 1
            self._sums[key] += seconds

    def text(self, gauges: Mapping[tuple[str, Labels], float]) -> str:
        """Returns all numbers as Prometheus reads them.

        Args:
          gauges: Those that are read off now.
        """
        with self._lock:
            counts = sorted(self._counts.items())
            times = sorted((key, list(buckets)) for key, buckets in self._times.items())
        lines: list[str] = []
        last = ""
        for (name, labels), value in counts:
            lines += [] if name == last else _head(name, "counter")
            lines.append(f"jaxdpo_{name}{_labels(labels)} {value:g}")
            last = name
        for (name, labels), value in sorted(gauges.items()):
            lines += [] if name == last else _head(name, "gauge")
            lines.append(f"jaxdpo_{name}{_labels(labels)} {value:g}")
            last = name
        for (name, labels), buckets in times:
            lines += [] if name == last else _head(name, "histogram")
            lines += self._histogram(name, labels, buckets)
            last = name
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str, labels: Labels, buckets: list[int]) -> Iterator[str]:
        # Prometheus' buckets are cumulative.
        total = 0
        for bound, count in zip([*map(str, _BUCKETS), "+Inf"], buckets, strict=True):
            total += count
            yield f"jaxdpo_{name}_bucket{_labels((*labels, ('le', bound)))} {total}"
        yield f"jaxdpo_{name}_sum{_labels(labels)} {self._sums[name, labels]:g}"
        yield f"jaxdpo_{name}_count{_labels(labels)} {total}"


def _head(name: str, kind: str) -> list[str]:
    return [f"# HELP jaxdpo_{name} {_HELP[name]}", f"# TYPE jaxdpo_{name} {kind}"]


def _labels(labels: Labels) -> str:
    # A backslash first, or those of the other two would be escaped again.
    escaped = (
        (name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
        for name, value in labels
    )
    inner = ",".join(f'{name}="{value}"' for name, value in escaped)
    return f"{{{inner}}}" if inner else ""
