"""The server under load: many clients at once beside one, each answer compared with that of the same text alone.

    python -m benchmarks.serve [--clients 64] [--seconds 60]

The texts are 64 short sentences; every client has one open connection and sends its next text when it has the
answer to the last one. Memory is the resident memory of the server, at the beginning and the end of each row. A second
table has requests that arrive at random times, so many a second, whether or not others have their answers. A third one
has the latency of a short sentence while a client translates a list of long texts.
"""

import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple

import click
import numpy as np

from benchmarks.conditions import conditions
from benchmarks.measure import markdown_table

SUBJECTS = ["The cat", "A dog", "My sister", "The old man", "Our teacher", "The train", "This child", "Her best friend"]
PREDICATES = [
    "is very tired today.",
    "likes to play in the garden.",
    "was late again this morning.",
    "lives in Paris with her family.",
    "has a red car and a big house near the sea.",
    "wants to know where the station is.",
    "never drinks coffee in the evening.",
    "has been waiting for an answer since Monday, but nobody called.",
]
TEXTS = [f"{subject} {predicate}" for subject in SUBJECTS for predicate in PREDICATES]
LONG_TEXTS = [f"{first} {second}" for first, second in itertools.pairwise(TEXTS)] * 2
SHORT_TEXT = "Where is the station?"
HEADER = ["clients", "requests", "errors", "other answers", "requests/s", "median", "95 %", "sentences/batch", "memory"]
ARRIVAL_RATES = (5, 10, 20)
ARRIVAL_HEADER = ["arrivals/s", "requests", "errors", "other answers", "median", "95 %", "sentences/batch"]
LATENCY_HEADER = ["long request", "short texts meanwhile", "alone", "median", "95 %"]
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


class Server(NamedTuple):
    """A running server."""

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def memory(self) -> float:
        """Return its resident memory in MB."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1000

    def batches(self) -> tuple[float, float]:
        """Return the numbers of sentences and of batches so far."""
        with closing(self.connect()) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        sums = [re.search(rf"batch_sentences_{name} (\S+)", text) for name in ("sum", "count")]
        return float(sums[0][1] if sums[0] else 0), float(sums[1][1] if sums[1] else 0)


class Client(threading.Thread):
    """Translates texts, one after the other, until a time; records seconds, errors and answers that differ."""

    def __init__(self, server: Server, expected: dict[str, str], first: int, end: float) -> None:
        super().__init__()
        self._server, self._expected, self._end = server, expected, end
        self._texts = itertools.islice(itertools.cycle(expected), first, None)
        self.seconds: list[float] = []
        self.errors = self.others = 0

    def run(self) -> None:
        """Send requests."""
        with closing(self._server.connect()) as connection:
            for text in self._texts:
                start = time.perf_counter()
                if start > self._end:
                    break
                answer = translate(connection, text)
                self.seconds.append(time.perf_counter() - start)
                self.errors += answer is None
                self.others += answer not in (None, self._expected[text])


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server of the bundled model."""
    command = [sys.executable, "-m", "mlx_transformer", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        address = ADDRESS.search(process.stderr.readline() if process.stderr else "")
        if address is None:
            raise RuntimeError("the server did not start")
        try:
            yield Server(process, int(address[1]))
        finally:
            process.terminate()


def translate(connection: http.client.HTTPConnection, text: str | list[str]) -> str | None:
    """Return the translation of a text, or of a list as one string; None for an error."""
    body = json.dumps({"q": text, "source": "en", "target": "fr"})
    connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    return str(answer["translatedText"]) if response.status == 200 else None


def load_row(server: Server, expected: dict[str, str], num_clients: int, seconds: float) -> list[object]:
    """Return what so many clients got in a time."""
    memory, before = server.memory(), server.batches()
    start = time.perf_counter()
    clients = [Client(server, expected, number, start + seconds) for number in range(num_clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    elapsed = time.perf_counter() - start
    sentences, batches = (after - first for after, first in zip(server.batches(), before, strict=True))
    times = [second for client in clients for second in client.seconds]
    median, most = np.percentile(times, [50, 95])
    errors, others = sum(client.errors for client in clients), sum(client.others for client in clients)
    return [
        *(num_clients, len(times), errors, others, round(len(times) / elapsed, 1)),
        *(f"{median * 1000:.0f} ms", f"{most * 1000:.0f} ms", round(sentences / max(batches, 1), 1)),
        f"{memory:.0f} to {server.memory():.0f} MB",
    ]


def arrivals_row(server: Server, expected: dict[str, str], rate: float, seconds: float) -> list[object]:
    """Return what requests that arrive at random got, and how long after their arrival."""
    random = np.random.default_rng(0)
    arrivals = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    texts = random.choice(TEXTS, len(arrivals))
    before, start = server.batches(), time.perf_counter()

    def request(arrival: float, text: str) -> tuple[float, str | None]:
        time.sleep(max(start + arrival - time.perf_counter(), 0))
        with closing(server.connect()) as connection:
            answer = translate(connection, text)
        return time.perf_counter() - start - arrival, answer

    with ThreadPoolExecutor(len(arrivals)) as executor:
        results = list(executor.map(request, arrivals, texts))
    sentences, batches = (after - first for after, first in zip(server.batches(), before, strict=True))
    median, most = np.percentile([elapsed for elapsed, _ in results], [50, 95])
    others = sum(answer not in (None, expected[text]) for (_, answer), text in zip(results, texts, strict=True))
    return [
        *(f"{rate:g}", len(results), sum(answer is None for _, answer in results), others),
        *(f"{median * 1000:.0f} ms", f"{most * 1000:.0f} ms", round(sentences / max(batches, 1), 1)),
    ]


def measure_short(connection: http.client.HTTPConnection) -> float:
    """Return the seconds of a short text."""
    start = time.perf_counter()
    translate(connection, SHORT_TEXT)
    return time.perf_counter() - start


def latency_table() -> str:
    """Return the latency of a short text alone, and while a list of long texts is translated."""
    with running_server() as server, closing(server.connect()) as connection, closing(server.connect()) as other:
        translate(other, LONG_TEXTS)  # compiles
        alone = np.median([measure_short(connection) for _ in range(10)])
        thread = threading.Thread(target=translate, args=(other, LONG_TEXTS))
        start, times = time.perf_counter(), []
        thread.start()
        time.sleep(0.5)
        while thread.is_alive():
            times.append(measure_short(connection))
            time.sleep(0.1)
        elapsed = time.perf_counter() - start
    median, most = np.percentile(times, [50, 95])
    figures = [f"{second * 1000:.0f} ms" for second in (alone, median, most)]
    return markdown_table(LATENCY_HEADER, [[f"{elapsed:.1f} s", len(times), *figures]])


def load_tables(num_clients: int, seconds: float) -> str:
    """Return the rows of one client and of many, and those of requests that arrive at random."""
    with running_server() as server:
        with closing(server.connect()) as connection:
            expected = {text: translate(connection, text) or "" for text in TEXTS}
        load_row(server, expected, num_clients, seconds / 10)  # compiles the shapes of large batches
        rows = [load_row(server, expected, count, seconds) for count in (1, num_clients)]
        arrivals = [arrivals_row(server, expected, rate, seconds) for rate in ARRIVAL_RATES]
    return f"{markdown_table(HEADER, rows)}\n{markdown_table(ARRIVAL_HEADER, arrivals)}"


@click.command()
@click.option("--clients", default=64, show_default=True, help="Number of clients at once.")
@click.option("--seconds", default=60.0, show_default=True, help="Seconds of each row.")
def main(clients: int, seconds: float) -> None:
    """Load a server and print three tables."""
    click.echo(conditions(clients=clients, seconds=f"{seconds:g}", model="bundled"))
    click.echo(load_tables(clients, seconds))
    click.echo(latency_table())


if __name__ == "__main__":
    main()
