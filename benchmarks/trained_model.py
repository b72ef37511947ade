"""Parts of the benchmark of generation that need a trained model: a file of sentences, traces, the first sentence."""

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
from benchmarks.kernels import counted_traces
from benchmarks.measure import Goal, greatest_foreign, in_turn, summary, table
from benchmarks.random_weights import Result

SENTENCE = "Where is the station?"
WHO = ("The old teacher", "A girl", "My brother", "The man in the red coat", "Nobody", "Our new neighbour")
WHAT = ("reads", "is waiting", "has lost his keys", "wants to buy some bread and a bottle of milk", "sleeps", "sings")
WHERE = ("", " at the station", " in the garden behind the house", " every morning before it gets light")
BEAMS = 4
MIXED = 4  # a line of a file of mixed lengths has one to so many sentences


def own_sentences() -> list[str]:
    """English sentences of different lengths, where there is no corpus."""
    found = [f"{who} {what}{where}." for who, what, where in product(WHO, WHAT, WHERE)]
    return random.Random(0).sample(found, len(found))


def read_lines(corpus: Path, count: int) -> list[str]:
    """The first lines of a file, plain or .gz."""
    opened = gzip.open(corpus, "rt", encoding="utf-8") if corpus.suffix == ".gz" else corpus.open(encoding="utf-8")
    with opened as file:
        return [line.rstrip("\n") for line, _ in zip(file, range(count), strict=False)]


def load(model: str | None, dtype: str | None) -> tuple[mt.Transformer, mt.Tokenizer]:
    """A trained model with its tokenizer."""
    network, tokenizer = mt.load(model, dtype=dtype)
    if tokenizer is None:
        raise ValueError("Sentences need a model with a tokenizer: --model has none.")
    return network, tokenizer


def whole_file(model: str | None, dtype: str | None, lines: list[str], repeats: int) -> Result:
    """One call for a file of sentences beside a call a sentence, with a beam of four."""
    network, tokenizer = load(model, dtype)
    search = replace(network.search_defaults, beam_size=BEAMS)
    outputs: dict[str, list[str]] = {}

    def at_once() -> None:
        outputs["one call for the file"] = mt.generate(network, tokenizer, lines, search)

    def one_by_one() -> None:
        outputs["a call a sentence"] = [mt.generate(network, tokenizer, line, search) for line in lines]

    at_once()  # traces and compiles
    mt.generate(network, tokenizer, lines[:1], search)
    calls = {"one call for the file": at_once, "a call a sentence": one_by_one}
    samples = in_turn(calls, max(1, repeats // 3))
    timings = {name: summary(taken) for name, taken in samples.items()}
    file, single = outputs.values()
    differ = sum(a != b for a, b in zip(file, single, strict=True))
    times = [timing.median for timing in timings.values()]
    rows = [
        (name, f"{len(lines) / timing.median:.1f}", f"{timing.median:.1f}", greatest_foreign(samples[name]))
        for name, timing in timings.items()
    ]
    text = table([f"{len(lines)} sentences, beam {BEAMS}", "sentences/s", "s", "others"], rows)
    text += f"\n- {differ} of {len(lines)} outputs differ.\n"
    goals = [
        Goal("a file: speed / one call a sentence", times[1] / times[0], 3, 5),
        Goal("a file: share of outputs that differ", differ / len(lines), 0.005, 0.001, lower=True),
    ]
    seconds = {name: timing.median for name, timing in timings.items()}
    return Result(text, goals, {"sentences": len(lines), "seconds": seconds, "differ": differ})


def traces(model: str | None, dtype: str | None, sentences: list[str], count: int) -> Result:
    """How often functions are traced over a file of mixed lengths, after another such file."""
    found = []
    with counted_traces() as counter:
        network, tokenizer = load(model, dtype)
        search = replace(network.search_defaults, beam_size=BEAMS)
        for seed in (0, 1):
            before = counter.copy()
            mt.generate(network, tokenizer, mixed(sentences, count, seed), search)
            found.append(counter - before)
    names = sorted(set().union(*found))
    rows = [(name, *(each[name] for each in found)) for name in names]
    text = table([f"traces of, over {count} lines", "first file", "second file"], rows)
    goal = Goal("traces over a second file of mixed lengths", found[1].total(), 0, 0, lower=True)
    return Result(text, [goal], {"first": found[0], "second": found[1]})


def mixed(sentences: list[str], count: int, seed: int) -> list[str]:
    """Lines of one to a few sentences."""
    chosen = random.Random(seed)
    return [" ".join(chosen.sample(sentences, chosen.randint(1, MIXED))) for _ in range(count)]


def first_sentence(model: str | None, environment: dict[str, str], runs: int) -> tuple[list[float], str]:
    """Seconds from the command to the end of its one sentence, run by run, and what it said."""
    command = [sys.executable, "-m", "mlx_transformer", "generate", SENTENCE, *(["--model", model] if model else [])]
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
    return seconds, done.stdout.strip()


def start(model: str | None) -> Result:
    """From the command to the first sentence, with kernels that an earlier run compiled; median of five."""
    seconds, text = first_sentence(model, {}, 6)
    warm = median(seconds[1:])
    words = f"{SENTENCE!r} -> {text!r}: {warm:.2f} s, median of {min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}.\n"
    return Result(words, [Goal("from the command to the first sentence, s", warm, 1, 0.5, lower=True)], seconds[1:])
