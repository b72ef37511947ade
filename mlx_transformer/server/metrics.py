"""What a server has done, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "mlx_transformer"
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; none of them holds text.

    Attributes:
        requests: Finished requests, by path and status.
        seconds: Seconds that requests took, by path.
        sentences: Sentences that models have begun, by model.
        batch_sizes: Numbers of sentences in batches, again and again while they are searched.
        waiting: Sentences that wait for a model, by model.
        models: Models in memory.
        model_bytes: Bytes of their weights.
        loads: Models loaded, counting repetitions.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(f"{PREFIX}_requests", "Finished requests.", ["path", "status"], registry=registry)
        self.seconds = Histogram(f"{PREFIX}_request_seconds", "Seconds of requests.", ["path"], registry=registry)
        self.sentences = Counter(f"{PREFIX}_sentences", "Sentences begun.", ["model"], registry=registry)
        self.batch_sizes = Histogram(
            f"{PREFIX}_batch_sentences", "Sentences of batches.", buckets=BATCH_SIZES, registry=registry
        )
        self.waiting = Gauge(f"{PREFIX}_waiting_sentences", "Sentences that wait.", ["model"], registry=registry)
        self.models = Gauge(f"{PREFIX}_loaded_models", "Models in memory.", registry=registry)
        self.model_bytes = Gauge(f"{PREFIX}_model_bytes", "Bytes of the weights in memory.", registry=registry)
        self.loads = Counter(f"{PREFIX}_model_loads", "Models loaded.", registry=registry)

    def format(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)
