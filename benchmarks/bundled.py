"""Quality of an English-French model by kind of input: short and long sentences, several on a line, numbers, capitals.

    python -m benchmarks.bundled DATA [--model FOLDER] [--formats | --compare float16]

DATA holds the folders tatoeba-en-fr and en-fr-dev. None of the sentences is in the training corpus. With the model of a
training run (RUN/best) as --model, --formats measures it in each storage format. The last line is the time of the whole
command for one sentence, without and with cached compiled kernels. --compare measures instead how the texts change when
the device computes in another type than float32.
"""

import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import click

import mlx_transformer as mt
from benchmarks.conditions import conditions
from benchmarks.measure import markdown_table
from benchmarks.trained_model import SENTENCE, time_first_sentence
from mlx_transformer.data.parallel_corpus import read_pairs
from mlx_transformer.metrics import corpus_scores, group_references
from mlx_transformer.pretrained.loading import find_model

FORMATS = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "8-bit": {"dtype": "float16", "quantize": 8},
    "4-bit": {"dtype": "float16", "quantize": 4},
}
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
@click.option("--formats", is_flag=True, help="Measure the model in each storage format.")
@click.option("--beam", "beams", multiple=True, type=int, default=(1, 4), show_default=True)
@click.option("--compare", type=click.Choice(["float16", "bfloat16"]), help="Compare this type with float32 instead.")
@click.option("--sentences", default=1000, show_default=True, help="Sentences to compare.")
@click.option("--examples", default=0, show_default=True, help="Random sentences of ten words and more to print.")
def main(
    data: Path,
    model: str | None,
    formats: bool,
    beams: tuple[int, ...],
    compare: str | None,
    sentences: int,
    examples: int,
) -> None:
    """Print the BLEU of a model on each kind of input, by storage format and beam size."""
    if compare is not None:
        print(conditions(model=model or "bundled", compare=compare))
        print(compare_dtypes(data, model, compare, beams, sentences), end="")
        return
    parts = kinds_of_input(data)
    print(conditions(model=model or "bundled", sentences=sum(len(sources) for sources, _ in parts.values())))
    original = find_model(model)
    with tempfile.TemporaryDirectory() as scratch:
        folders = save_formats(original, Path(scratch)) if formats else {"as stored": original}
        columns = {
            f"{name}, beam {beam}": translator(folder, beam) for name, folder in folders.items() for beam in beams
        }
        print(f"| input | sentences | {' | '.join(columns)} |")
        print("|---|---|" + "---|" * len(columns))
        for name, (sources, references) in parts.items():
            scores = [corpus_scores(translate(sources), references) for translate in columns.values()]
            print(
                f"| {name} | {len(sources)} | " + " | ".join(f"{row['bleu']:.1f}" for row in scores) + " |", flush=True
            )
        counts = [count_copied(translate(list(NUMBERS))) for translate in columns.values()]
        print(f"| numbers copied | {len(NUMBERS)} | " + " | ".join(map(str, counts)) + " |")
        sizes = {name: (folder / "model.safetensors").stat().st_size / 1e6 for name, folder in folders.items()}
        print("megabytes: " + ", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))
        print(f"BLEU signature: {scores[0]['bleu_signature']}")
        long_sources = parts["ten words and more"][0]
        for source in random.Random(1).sample(long_sources, min(examples, len(long_sources))):
            print(f"{source}\n    {[*columns.values()][-1]([source])[0]}")
    report_startup(model)


def compare_dtypes(data: Path, model: str | None, dtype: str, beams: tuple[int, ...], count: int) -> str:
    """Return a table of the share of texts that are the same in `dtype` and float32, and of the BLEU of both."""
    sources, references = (part[:count] for part in kinds_of_input(data)["all lengths"])
    folder, rows = find_model(model), []
    for beam in beams:
        texts = {name: translator(folder, beam, name)(sources) for name in ("float32", dtype)}
        same = sum(first == second for first, second in zip(*texts.values(), strict=True))
        scores = [corpus_scores(outputs, references)["bleu"] for outputs in texts.values()]
        rows.append((beam, len(sources), f"{same / len(sources):.1%}", *(f"{score:.2f}" for score in scores)))
    return markdown_table(["beams", "sentences", "same text", "BLEU in float32", f"BLEU in {dtype}"], rows)


def translator(folder: Path, beam: int, dtype: str | None = None) -> Callable[[list[str]], list[str]]:
    """Return a function that translates with the model of a folder."""
    network, tokenizer = mt.load(folder, dtype)
    search = replace(network.search_defaults, beam_size=beam)
    return lambda sources: mt.generate(network, tokenizer, sources, search)


def save_formats(folder: Path, scratch: Path) -> dict[str, Path]:
    """Save the model in each storage format; return the folder of each."""
    model, tokenizer = mt.load(folder, dtype="float32")
    for name, options in FORMATS.items():
        mt.save(scratch / name, model, tokenizer, **options)
    return {name: scratch / name for name in FORMATS}


def report_startup(model: str | None) -> None:
    """Print the time of the whole command for one sentence, without and with cached compiled kernels."""
    with tempfile.TemporaryDirectory() as cache:
        seconds, text = time_first_sentence(model, {"TMPDIR": cache}, 6)
    print(f"{SENTENCE!r} -> {text!r}: cold {seconds[0]:.2f} s, warm {median(seconds[1:]):.2f} s (median of 5)")


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
