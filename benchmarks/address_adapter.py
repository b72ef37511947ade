"""Worked example of an adapter: the bundled model learns one form of address from a few hundred pairs.

    python -m benchmarks.address_adapter DATA [--form formal] [--pairs 400]

English "you" is "vous" or "tu" in French. DATA holds the folders tatoeba-en-fr and en-fr-more. The pairs to learn from
are of cocoa_mt and Tatoeba, with the wanted form in their French side; the sentences to measure are of Tatoeba's
development set, with references in the wanted form. The adapter stays in --output for `generate --adapter`.
"""

import random
import re
import tempfile
import time
from pathlib import Path

import click

import mlx_transformer as mt
from benchmarks.conditions import conditions
from benchmarks.measure import markdown_table
from mlx_transformer.data.parallel_corpus import read_pairs
from mlx_transformer.metrics import corpus_scores, group_references

# Pronouns, possessives and the commonest verbs of each form.
FORMS = {
    "formal": re.compile(r"\b(vous|votre|vos|vôtres?|veuillez|êtes|avez)\b", re.IGNORECASE),
    "informal": re.compile(r"\b(tu|toi|te|ton|ta|tes|tien(ne)?s?)\b|\bt'", re.IGNORECASE),
}
YOU = re.compile(r"\b(you|your|yours|yourself)\b", re.IGNORECASE)
NUM_VALIDATION_PAIRS = 100
Pairs = list[tuple[str, str]]


def form_of(text: str) -> str:
    """Return the form of address of a French text: "formal", "informal", "both" or "none"."""
    forms = [name for name, pattern in FORMS.items() if pattern.search(text)]
    return forms[0] if len(forms) == 1 else "both" if forms else "none"


def addressed_pairs(path: Path, form: str) -> Pairs:
    """Return the pairs of a corpus that address somebody in one form."""
    pairs = read_pairs(str(path)).pairs
    return [(source, target) for source, target in pairs if YOU.search(source) and form_of(target) == form]


def training_pairs(data: Path, form: str, count: int, seed: int = 0) -> Pairs:
    """Return pairs to learn from, and to validate with, half of them from each corpus."""
    generator = random.Random(seed)
    corpora = (data / "en-fr-more" / "cocoa_mt.tsv.gz", data / "tatoeba-en-fr" / "train.tsv.gz")
    pairs = [pair for path in corpora for pair in generator.sample(addressed_pairs(path, form), count // 2)]
    generator.shuffle(pairs)
    return pairs


def measure(model: mt.Transformer, tokenizer: mt.Tokenizer, pairs: Pairs, form: str) -> list[object]:
    """Return the shares of the forms of address among the targets in percent, and BLEU."""
    sources, references = group_references(pairs)
    targets = mt.generate(model, tokenizer, sources)
    forms = [form_of(target) for target in targets]
    others = [name for name in FORMS if name != form]
    shares = [sum(each in names for each in forms) / len(forms) for names in ([form], [*others, "both"], ["none"])]
    return [*(f"{share:.1%}" for share in shares), f"{corpus_scores(targets, references)['bleu']:.1f}"]


def train_adapter(pairs: Pairs, output: Path, steps: int) -> Path:
    """Train an adapter of the bundled model; return its folder."""
    config = mt.TrainingConfig(
        init="bundled",
        lora_rank=8,
        train=pairs[NUM_VALIDATION_PAIRS:],
        valid=pairs[:NUM_VALIDATION_PAIRS],
        output=output,
        learning_rate=1e-3,
        warmup_steps=20,
        steps=steps,
        batch_tokens=1024,
        valid_every=25,
    )
    return mt.train(config)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--form", type=click.Choice([*FORMS]), default="formal", show_default=True)
@click.option("--pairs", "count", type=click.IntRange(20), default=400, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Run folder; default: a temporary one.")
def main(data: Path, form: str, count: int, steps: int, output: Path | None) -> None:
    """Print the form of address and BLEU of the bundled model, before and after it has learnt from pairs."""
    pairs = training_pairs(data, form, count + NUM_VALIDATION_PAIRS)
    sentences = addressed_pairs(data / "tatoeba-en-fr" / "dev.tsv.gz", form)
    print(conditions(form=form, pairs=count, steps=steps, sentences=len({source for source, _ in sentences})))
    rows = [["before", *measure(*mt.load(), sentences, form)]]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        adapter = train_adapter(pairs, output or Path(folder) / "run", steps)
        seconds = time.perf_counter() - start
        rows.append(["after", *measure(*mt.load(adapter=adapter), sentences, form)])
        size = sum(path.stat().st_size for path in adapter.iterdir()) / 1e6
    print(markdown_table(["", form, "the other", "neither", "BLEU"], rows))
    print(f"The adapter has {size:.1f} MB; training took {seconds:.0f} s.")


if __name__ == "__main__":
    main()
