"""Parts of the generation benchmark that use a trained model: a file of sentences, traces, start-up."""

import gzip
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median

import mlx_transformer as mt
from benchmarks.kernels import count_traces
from benchmarks.measure import Goal, Result, interleave_calls, markdown_table, max_other_load, summarise

SENTENCE = "Where is the station?"
SUBJECTS = ("The old teacher", "A girl", "My brother", "The man in the red coat", "Nobody", "Our new neighbour")
PREDICATES = (
    "reads",
    "is waiting",
    "has lost his keys",
    "wants to buy some bread and a bottle of milk",
    "sleeps",
    "sings",
)
ADVERBIALS = ("", " at the station", " in the garden behind the house", " every morning before it gets light")
BEAM_SIZE = 4
MAX_SENTENCES_PER_LINE = 4  # sentences of each line of a file of mixed lengths


def simple_sentences() -> list[str]:
    """Return English sentences of different lengths, for use without a corpus."""
    sentences = [
        f"{subject} {predicate}{adverbial}."
        for subject, predicate, adverbial in product(SUBJECTS, PREDICATES, ADVERBIALS)
    ]
    return random.Random(0).sample(sentences, len(sentences))


def read_lines(corpus: Path, count: int) -> list[str]:
    """Return the first lines of a file, plain or gzip."""
    opened = gzip.open(corpus, "rt", encoding="utf-8") if corpus.suffix == ".gz" else corpus.open(encoding="utf-8")
    with opened as file:
        return [line.rstrip("\n") for line, _ in zip(file, range(count), strict=False)]


def file_throughput(model: str | None, dtype: str | None, lines: list[str], repeats: int) -> Result:
    """Compare one call for a file of sentences with one call for each sentence, at beam size 4."""
    network, tokenizer = mt.load(model, dtype=dtype)
    search = replace(network.search_defaults, beam_size=BEAM_SIZE)
    outputs: dict[str, list[str]] = {}

    def at_once() -> None:
        outputs["one call for the file"] = mt.generate(network, tokenizer, lines, search)

    def one_by_one() -> None:
        outputs["a call a sentence"] = [mt.generate(network, tokenizer, line, search) for line in lines]

    at_once()  # warm up: trace and compile
    mt.generate(network, tokenizer, lines[:1], search)
    calls = {"one call for the file": at_once, "a call a sentence": one_by_one}
    samples = interleave_calls(calls, max(1, repeats // 3))
    timings = {name: summarise(taken) for name, taken in samples.items()}
    file, single = outputs.values()
    differ = sum(a != b for a, b in zip(file, single, strict=True))
    times = [timing.median for timing in timings.values()]
    rows = [
        (name, f"{len(lines) / timing.median:.1f}", f"{timing.median:.1f}", max_other_load(samples[name]))
        for name, timing in timings.items()
    ]
    text = markdown_table([f"{len(lines)} sentences, beam {BEAM_SIZE}", "sentences/s", "s", "other load"], rows)
    text += f"\n- {differ} of {len(lines)} outputs differ.\n"
    goals = [
        Goal("a file: speed / one call a sentence", times[1] / times[0], 3, 5),
        Goal("a file: share of outputs that differ", differ / len(lines), 0.005, 0.001, lower=True),
    ]
    seconds = {name: timing.median for name, timing in timings.items()}
    return Result(text, goals, {"sentences": len(lines), "seconds": seconds, "differ": differ})


def file_traces(model: str | None, dtype: str | None, sentences: list[str], count: int) -> Result:
    """Count how often functions are traced for a file of mixed lengths, and for a second one after it."""
    traces = []
    with count_traces() as counter:
        network, tokenizer = mt.load(model, dtype=dtype)
        search = replace(network.search_defaults, beam_size=BEAM_SIZE)
        for seed in (0, 1):
            before = counter.copy()
            mt.generate(network, tokenizer, mixed_lines(sentences, count, seed), search)
            traces.append(counter - before)
    names = sorted(set().union(*traces))
    rows = [(name, *(counts[name] for counts in traces)) for name in names]
    text = markdown_table([f"traces of, over {count} lines", "first file", "second file"], rows)
    goal = Goal("traces over a second file of mixed lengths", traces[1].total(), 0, 0, lower=True)
    return Result(text, [goal], {"first": traces[0], "second": traces[1]})


def mixed_lines(sentences: list[str], count: int, seed: int) -> list[str]:
    """Return random lines of one to a few sentences each."""
    generator = random.Random(seed)
    return [" ".join(generator.sample(sentences, generator.randint(1, MAX_SENTENCES_PER_LINE))) for _ in range(count)]


def time_first_sentence(model: str | None, environment: dict[str, str], runs: int) -> tuple[list[float], str]:
    """Return the seconds that the command takes to generate one sentence, for each run, and its output."""
    command = [sys.executable, "-m", "mlx_transformer", "generate", SENTENCE, *(["--model", model] if model else [])]
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        result = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
    return seconds, result.stdout.strip()


def startup(model: str | None) -> Result:
    """Measure the time from the command to the first sentence with compiled kernels cached; median of five."""
    seconds, text = time_first_sentence(model, {}, 6)
    warm = median(seconds[1:])
    text = f"{SENTENCE!r} -> {text!r}: {warm:.2f} s, median of {min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}.\n"
    return Result(text, [Goal("from the command to the first sentence, s", warm, 1, 0.5, lower=True)], seconds[1:])
