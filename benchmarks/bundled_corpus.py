"""Writes the corpus that the bundled model is trained on, from openly licensed corpora and from templates.

    python -m benchmarks.bundled_corpus DATA CORPUS.tsv

DATA holds the folders tatoeba-en-fr and en-fr-more. The same data and seed give the same corpus.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.bundled_templates import template_pairs
from mlx_transformer.data.parallel_corpus import ParallelCorpora

# Corpus -> how often its pairs occur; a share below 1 takes a sample.
WEIGHTS = {
    "african_storybook": 2.0,
    "canada_cds_blog": 0.5,
    "canada_services_mit": 1.0,
    "cocoa_mt": 4.0,
    "duckduckgo_android": 1.0,
    "hf_course": 0.3,
    "inaturalist_ui": 0.5,
    "libreoffice_help": 0.1,
    "mozilla_www_vpn": 1.0,
    "opensource_guide": 1.0,
    "pd_tales": 1.0,
    "python_docs": 0.1,
    "react_docs": 0.2,
    "tico19": 1.0,
}
LONG = 9  # words from which a sentence of Tatoeba counts as long
LONG_WEIGHT = 3
NUM_TEMPLATES = 12_000


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(data: Path, output: Path, seed: int) -> None:
    """Write the training corpus to OUTPUT, a TSV file, and print how many pairs come from where."""
    generator = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    parts = {"tatoeba": list(tatoeba_pairs(data)), "templates": list(template_pairs(NUM_TEMPLATES, seed))}
    for name, weight in WEIGHTS.items():
        parts[name] = weighted(read_pairs(data / "en-fr-more" / f"{name}.tsv.gz"), weight, generator)
    for name, part in parts.items():
        click.echo(f"{name:<22}{len(part):>8}")
        pairs += part
    generator.shuffle(pairs)
    output.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    click.echo(f"{'all':<22}{len(pairs):>8}")


def tatoeba_pairs(data: Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of Tatoeba, long ones several times."""
    for pair in read_pairs(data / "tatoeba-en-fr" / "train.tsv.gz"):
        for _ in range(LONG_WEIGHT if len(pair[0].split()) >= LONG else 1):
            yield pair


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read the pairs of a corpus; of several targets of one source, the first."""
    seen: dict[str, str] = {}
    pairs = [(pair.source.strip(), pair.target.strip()) for pair in ParallelCorpora([str(path)])]
    if "tatoeba" in str(path):
        return pairs
    for source, target in pairs:
        seen.setdefault(source, target)
    return list(seen.items())


def weighted(pairs: list[tuple[str, str]], weight: float, generator: random.Random) -> list[tuple[str, str]]:
    """Return pairs as often as a weight says; of a share below 1, a sample."""
    whole, share = divmod(weight, 1)
    return pairs * int(whole) + generator.sample(pairs, round(share * len(pairs)))


if __name__ == "__main__":
    main()
