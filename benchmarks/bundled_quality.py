"""Quality of an English-French model by kind of input: short and long sentences, several on a line, numbers, capitals.

    python -m benchmarks.bundled_quality DATA [--model FOLDER] [--beam 4]

DATA holds the folders tatoeba-en-fr and en-fr-dev. None of the sentences is in the training corpus.
"""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

import mlx_transformer as mt
from benchmarks.conditions import conditions
from mlx_transformer.data.parallel_corpus import read_pairs
from mlx_transformer.metrics import corpus_scores, group_references

SAMPLE = 300
NUMBERS = (
    "My phone number is 555-1234.",
    "The train leaves at 8:45.",
    "It costs 12.50 euros.",
    "There are 237 pages in this book.",
    "I was born in 1987.",
    "The flight number is 4721.",
    "She is 34 years old.",
    "We need 1,250 dollars.",
    "The meeting is on March 16 at 14:30.",
    "Room 318 is on the third floor.",
)
Part = tuple[list[str], list[list[str]]]  # sources, and the references of each


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", help="A model folder; default: the bundled model.")
@click.option("--beam", "beams", multiple=True, type=int, default=(1, 4), show_default=True)
@click.option("--examples", default=0, show_default=True, help="Random sentences of ten words and more to print.")
def main(data: Path, model: str | None, beams: tuple[int, ...], examples: int) -> None:
    """Print the BLEU of a model on each kind of input, by beam size."""
    network, tokenizer = mt.load(model)
    parts = kinds_of_input(data)
    print(conditions(model=model or "bundled", sentences=sum(len(sources) for sources, _ in parts.values())))
    print("| input | sentences | " + " | ".join(f"beam {beam}" for beam in beams) + " |")
    print("|---|---|" + "---|" * len(beams))

    def translate(sources: list[str], beam: int) -> list[str]:
        return mt.generate(network, tokenizer, sources, replace(network.search_defaults, beam_size=beam))

    for name, (sources, references) in parts.items():
        scores = [corpus_scores(translate(sources, beam), references)["bleu"] for beam in beams]
        print(f"| {name} | {len(sources)} | " + " | ".join(f"{score:.1f}" for score in scores) + " |", flush=True)
    counts = [count_copied(translate(list(NUMBERS), beam)) for beam in beams]
    print(f"| numbers copied | {len(NUMBERS)} | " + " | ".join(map(str, counts)) + " |")
    long_sources = parts["ten words and more"][0]
    for source in random.Random(1).sample(long_sources, min(examples, len(long_sources))):
        print(f"{source}\n    {translate([source], beams[-1])[0]}")


def kinds_of_input(data: Path) -> dict[str, Part]:
    """Return the parts of the test by name."""
    sources, references = group_references(read_pairs(str(data / "tatoeba-en-fr" / "dev.tsv.gz")).pairs)
    everything = list(zip(sources, references, strict=True))
    usual = everything[:SAMPLE]

    def select(condition: Callable[[int], bool]) -> Part:
        rows = [row for row in everything if condition(len(row[0].split()))]
        return [source for source, _ in rows], [group for _, group in rows]

    def read_dev(name: str, low: int, high: int) -> Part:
        pairs = read_pairs(str(data / "en-fr-dev" / f"{name}.tsv.gz")).pairs
        rows = [(source, [target]) for source, target in pairs if low <= len(source.split()) <= high]
        rows = random.Random(0).sample(rows, SAMPLE)
        return [source for source, _ in rows], [group for _, group in rows]

    return {
        "all lengths": (sources, references),
        "one to five words": select(lambda words: words <= 5),
        "ten words and more": select(lambda words: words >= 10),
        "three sentences on a line": joined(everything),
        "the first 300": ([source for source, _ in usual], [group for _, group in usual]),
        "the first 300 in capitals": (
            [source.upper() for source, _ in usual],
            [[target.upper() for target in group] for _, group in usual],
        ),
        "everyday conversation": read_dev("diabla_dialogue", 8, 25),
        "news and encyclopedia": read_dev("ud_pud", 8, 40),
    }


def joined(rows: list[tuple[str, list[str]]]) -> Part:
    """Return lines of three sentences each, with as many references as one of them has."""
    rows = random.Random(0).sample(rows, 3 * SAMPLE)
    lines = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    references = [
        [" ".join(group[min(i, len(group) - 1)] for _, group in line) for i in range(max(len(g) for _, g in line))]
        for line in lines
    ]
    return [" ".join(source for source, _ in line) for line in lines], references


def count_copied(outputs: list[str]) -> int:
    """Return how many outputs have the digits of their source."""
    digits = [[sorted(re.findall(r"\d+", text)) for text in texts] for texts in (NUMBERS, outputs)]
    return sum(source == output for source, output in zip(*digits, strict=True))


if __name__ == "__main__":
    main()
