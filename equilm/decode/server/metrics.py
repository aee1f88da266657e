"""What the server counts, in Prometheus' text format.

Each app has a registry of its own, so two in one process do not add up. Read `app.py` next.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from equilm.decode.engine import Counts
from equilm.decode.request import Token

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class Metrics:
    """Counters and histograms of one server.

    Args:
        counts: Where the engine stands; read when somebody asks.
        num_open: Answers that have not ended.
    """

    def __init__(self, counts: Callable[[], Counts], num_open: Callable[[], int]) -> None:
        registry = self.registry = CollectorRegistry()
        registry.register(_EngineCollector(counts, num_open))
        self.requests = Counter(
            "equilm_requests", "HTTP requests answered.", ("path", "status"), registry=registry
        )
        self.settled = Counter(
            "equilm_settled_tokens", "Tokens answered.", ("status",), registry=registry
        )
        self.steps = Histogram(
            "equilm_token_steps", "Evaluations a token took.", buckets=_STEPS, registry=registry
        )
        self.first = Histogram(
            "equilm_first_token_seconds", "Time to an answer's first token.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.whole = Histogram(
            "equilm_request_seconds", "Time to an answer's end, cancelled ones too.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip

    def count_answer(self, path: str, status: int) -> None:
        """Count an HTTP answer by the path of its route."""
        self.requests.labels(path, str(status)).inc()

    def count_token(self, token: Token) -> None:
        """Count a generated token."""
        self.settled.labels(token.status).inc()
        self.steps.observe(token.steps)

    def text(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(self, counts: Callable[[], Counts], num_open: Callable[[], int]) -> None:
        self._counts, self._num_open = counts, num_open

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        for name, told, value in (
            ("slots", "Answers that are worked on at once, at most.", counts.slots),
            ("running", "Answers whose tokens are being generated.", counts.running),
            ("prefilling", "Answers whose prompt is being taken in.", counts.prefilling),
            ("waiting", "Answers that wait for a slot.", counts.waiting),
            ("open", "Answers that have not ended.", self._num_open()),
        ):
            yield GaugeMetricFamily(f"equilm_{name}", told, value=value)
        for name, told, value in (
            ("answers", "Answers asked for.", counts.requests),
            ("tokens", "Tokens generated.", counts.tokens),
            ("prompt_tokens", "Tokens of prompts taken in.", counts.prompt_tokens),
            ("cached_tokens", "Tokens of prompts known from before.", counts.cached_tokens),
            ("sweeps", "Batched evaluations of F.", counts.sweeps),
            ("evaluations", "Evaluations of F for generated tokens.", counts.evaluations),
        ):
            yield CounterMetricFamily(f"equilm_{name}", told, value=value)
