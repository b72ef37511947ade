"""What the bundled model can do: BLEU on a test set by beam and number format, speed, and time to the first sentence.

    python -m benchmarks.bundled CORPUS.tsv [--model FOLDER]

With the folder of a training run (RUN/best) as --model, --formats compares number formats with the float32 original.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import click
import mlx.core as mx

import mlx_transformer as mt
from benchmarks.conditions import conditions
from benchmarks.trained_model import SENTENCE, first_sentence
from mlx_transformer.data.parallel_corpus import read_pairs
from mlx_transformer.metrics import corpus_scores, group_references
from mlx_transformer.pretrained.loading import find_model

FORMATS = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "8-bit": {"dtype": "float16", "quantize": 8},
    "4-bit": {"dtype": "float16", "quantize": 4},
}
COMPARED = 100  # sentences whose logits are compared


@click.command()
@click.argument("corpus")
@click.option("--model", type=click.Path(file_okay=False), help="A model folder; the bundled model if left out.")
@click.option("--formats", is_flag=True, help="Store the model in each number format first.")
@click.option("--beams", multiple=True, type=int, default=(1, 4), show_default=True)
@click.option("--length-penalties", multiple=True, type=float, default=(1.0,), show_default=True)
def main(
    corpus: str, model: str | None, formats: bool, beams: tuple[int, ...], length_penalties: tuple[float, ...]
) -> None:
    """Measure a model on CORPUS (a SPEC as of `mlx-transformer train`), with all references of a source."""
    sources, references = group_references(read_pairs(corpus).pairs)
    print(conditions(model=model or "bundled", corpus=Path(corpus).name, sentences=len(sources)))
    print("| stored as | MB | logits off by, mean | most | beam | length penalty | BLEU | chrF | exact | sentences/s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    original, _ = mt.load(model)
    signature = ""
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in stored(find_model(model), Path(scratch)) if formats else [("as it is", find_model(model))]:
            network, tokenizer = mt.load(folder)
            if tokenizer is None:
                raise click.ClickException(f"{folder} needs a tokenizer.")
            megabytes = (folder / "model.safetensors").stat().st_size / 1e6
            errors = logits_error(original, network, tokenizer, sources, references)
            known = f"{name} | {megabytes:.1f} | {errors[0]:.4f} | {errors[1]:.2f}"
            for beam, penalty in [(b, p) for b in beams for p in (length_penalties if b > 1 else (1.0,))]:
                search = replace(network.search_defaults, beam_size=beam, length_penalty=penalty)
                started = time.perf_counter()
                texts = mt.generate(network, tokenizer, sources, search)
                rate = len(sources) / (time.perf_counter() - started)
                scores = corpus_scores(texts, references)
                signature = scores["bleu_signature"]
                figures = f"{scores['bleu']:.2f} | {scores['chrf']:.2f} | {scores['exact_match']:.1%} | {rate:.0f}"
                print(f"| {known} | {beam} | {penalty} | {figures} |", flush=True)
    print(f"BLEU signature: {signature}")
    report_start(model)


def logits_error(
    original: mt.Transformer, network: mt.Transformer, tokenizer: mt.Tokenizer, sources: list[str], references: list
) -> tuple[float, float]:
    """The mean and the largest absolute difference of two models' logits, with the references as targets."""
    errors = []
    for source, (reference, *_) in zip(sources[:COMPARED], references, strict=False):
        target = [tokenizer.start_id, *tokenizer.encode_target(reference)]
        batch = mx.array([tokenizer.encode(source)]), mx.array([target[: original.config.decoder.max_length]])
        errors.append(mx.abs(original(*batch) - network(*batch)).flatten())
    whole = mx.concatenate(errors)
    return whole.mean().item(), whole.max().item()


def stored(folder: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The model in each number format."""
    model, tokenizer = mt.load(folder)
    for name, options in FORMATS.items():
        mt.save(scratch / name, model, tokenizer, **options)
        yield name, scratch / name


def report_start(model: str | None) -> None:
    """Time the whole command for one sentence, with an empty cache of compiled kernels and with a filled one."""
    with tempfile.TemporaryDirectory() as cache:
        seconds, text = first_sentence(model, {"TMPDIR": cache}, 6)
    print(f"{SENTENCE!r} -> {text!r}: cold {seconds[0]:.2f} s, warm {median(seconds[1:]):.2f} s (median of 5)")


if __name__ == "__main__":
    main()
