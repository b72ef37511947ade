"""Terms in the targets of the bundled model: how many come through, what they do to a text, and what they cost.

    python -m benchmarks.terms [--repeats 5]

`terms.tsv` has sentences of our own with references: text to copy, and one or two terms of a glossary. chrF leaves the
terms themselves out. "constrained search" is what `generate` does where no word can be replaced, here for all lines.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

import mlx_transformer as mt
from benchmarks.conditions import conditions
from benchmarks.measure import interleave_calls, markdown_table, summarise
from mlx_transformer.inference.required_terms import make_constrained_search
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.inference.terminology import Terminology, missing_terms
from mlx_transformer.metrics import corpus_scores

LINES = 16  # in one call, for the cost
COSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no terms": ("My dog number {n} sleeps in the house.", {"protect": ()}),
    "terms that are there": ("My dog number {n} sleeps in the house.", {"glossary": {"dog": "chien"}}),
    "terms that replace words": ("My dog number {n} sleeps in the house.", {"glossary": {"dog": "toutou"}}),
    "URLs, not protected": ("Read page {n} of https://example.com/{n} today.", {"protect": ()}),
    "URLs": ("Read page {n} of https://example.com/{n} today.", {"protect": ("urls",)}),
}


class Sentence(NamedTuple):
    """A line of `terms.tsv`."""

    kind: str
    source: str
    reference: str
    glossary: dict[str, str]


def read_sentences() -> list[Sentence]:
    """Read `terms.tsv`."""
    with open(Path(__file__).with_suffix(".tsv"), encoding="utf-8", newline="") as file:
        return [
            Sentence(kind, source, reference, dict(pair.split("=") for pair in terms.split(";") if pair))
            for kind, source, reference, terms in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def quality_row(name: str, sentences: list[Sentence], targets: list[str]) -> list[object]:
    """Return the terms that are in the targets, and chrF without them."""
    kept, total, masked = 0, 0, []
    for sentence, target in zip(sentences, targets, strict=True):
        terms = Terminology(sentence.glossary).find(sentence.source)
        total += len(terms)
        kept += len(terms) - len(missing_terms(terms, target))
        masked.append([mask_terms(text, sentence.glossary.values()) for text in (target, sentence.reference)])
    scores = corpus_scores([target for target, _ in masked], [[reference] for _, reference in masked])
    return [name, len(sentences), f"{kept} of {total}", round(scores["chrf"], 1)]


def mask_terms(text: str, terms: Any) -> str:
    """Replace terms by a letter, so that they are no part of a comparison."""
    for term in sorted(terms, key=len, reverse=True):
        text = text.replace(term, "X")
    return text


def constrained(model: mt.Transformer, tokenizer: mt.Tokenizer, sentence: Sentence) -> str:
    """Return the target of a lexically constrained search for all terms of the glossary."""
    phrases = tuple(term.target for term in Terminology(sentence.glossary, protect=()).find(sentence.source))
    line = SourceLine(sentence.source, required_phrases=phrases)
    search = make_constrained_search(model.search_defaults)
    return next(mt.generate_hypotheses(model, tokenizer, [line], search))[0].text or ""


def quality_table(model: mt.Transformer, tokenizer: mt.Tokenizer) -> str:
    """Translate all sentences in each way."""
    sentences = read_sentences()
    copies, terms = ([s for s in sentences if s.kind == kind] for kind in ("copies", "glossary"))
    plain = [mt.generate(model, tokenizer, s.source, protect=()) for s in sentences]
    rows = [
        quality_row("copies, not protected", copies, plain[: len(copies)]),
        quality_row("copies", copies, [mt.generate(model, tokenizer, s.source) for s in copies]),
        quality_row("glossary, not used", terms, plain[len(copies) :]),
        quality_row("glossary", terms, [mt.generate(model, tokenizer, s.source, glossary=s.glossary) for s in terms]),
        quality_row("glossary, constrained search", terms, [constrained(model, tokenizer, s) for s in terms]),
    ]
    return markdown_table(["", "lines", "terms", "chrF"], rows)


def cost_table(model: mt.Transformer, tokenizer: mt.Tokenizer, repeats: int) -> str:
    """Measure calls of `LINES` lines, interleaved."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, (pattern, options) in COSTS.items():
        texts = [pattern.format(n=n) for n in range(LINES)]
        calls[name] = lambda texts=texts, options=options: mt.generate(model, tokenizer, texts, **options)
    line = SourceLine("My dog sleeps in the house.", required_phrases=("toutou",))
    calls["one line, beam of 4"] = lambda: mt.generate(model, tokenizer, line.text, beam_size=4, protect=())
    search = make_constrained_search(model.search_defaults)
    calls["one line, constrained search for a term of 2 tokens"] = lambda: list(
        mt.generate_hypotheses(model, tokenizer, [line], search)
    )
    for call in calls.values():
        call()  # compile
    samples = interleave_calls(calls, repeats)
    rows = [[name, f"{summarise(samples[name]).median:.2f} s"] for name in calls]
    return markdown_table([f"{LINES} lines in one call", "median"], rows)


@click.command()
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, help="Interleaved repetitions of each call."
)
def main(repeats: int) -> None:
    """Print what terms cost, and how well they come through."""
    model, tokenizer = mt.load()
    click.echo(conditions(lines=LINES, repeats=repeats))
    click.echo(f"\n{quality_table(model, tokenizer)}\n\n{cost_table(model, tokenizer, repeats)}")


if __name__ == "__main__":
    main()
