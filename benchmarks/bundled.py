"""Quality and speed of the bundled model: BLEU by beam size and storage format, sentences per second, start-up time.

    python -m benchmarks.bundled CORPUS.tsv [--model FOLDER]

With the model of a training run (RUN/best) as --model, --formats compares storage formats with the float32 original.
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
NUM_COMPARED = 100  # number of sentences whose logits are compared


@click.command()
@click.argument("corpus")
@click.option("--model", type=click.Path(file_okay=False), help="A model folder; default: the bundled model.")
@click.option("--formats", is_flag=True, help="Measure the model in each storage format.")
@click.option("--beams", multiple=True, type=int, default=(1, 4), show_default=True)
@click.option("--length-penalties", multiple=True, type=float, default=(1.0,), show_default=True)
def main(
    corpus: str, model: str | None, formats: bool, beams: tuple[int, ...], length_penalties: tuple[float, ...]
) -> None:
    """Measure a model on CORPUS (as for `mlx-transformer train --train`), with all references of each source."""
    sources, references = group_references(read_pairs(corpus).pairs)
    print(conditions(model=model or "bundled", corpus=Path(corpus).name, sentences=len(sources)))
    print("| format | MB | mean logit error | maximum | beam | length penalty | BLEU | chrF | exact | sentences/s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    original, _ = mt.load(model)
    signature = ""
    with tempfile.TemporaryDirectory() as scratch:
        path = find_model(model)
        for name, folder in saved_formats(path, Path(scratch)) if formats else [("original", path)]:
            network, tokenizer = mt.load(folder)
            if tokenizer is None:
                raise click.ClickException(f"The model must have a tokenizer: {folder} has none.")
            megabytes = (folder / "model.safetensors").stat().st_size / 1e6
            errors = logits_error(original, network, tokenizer, sources, references)
            prefix = f"{name} | {megabytes:.1f} | {errors[0]:.4f} | {errors[1]:.2f}"
            for beam, penalty in [(b, p) for b in beams for p in (length_penalties if b > 1 else (1.0,))]:
                search = replace(network.search_defaults, beam_size=beam, length_penalty=penalty)
                started = time.perf_counter()
                hypotheses = mt.generate(network, tokenizer, sources, search)
                rate = len(sources) / (time.perf_counter() - started)
                scores = corpus_scores(hypotheses, references)
                signature = scores["bleu_signature"]
                figures = f"{scores['bleu']:.2f} | {scores['chrf']:.2f} | {scores['exact_match']:.1%} | {rate:.0f}"
                print(f"| {prefix} | {beam} | {penalty} | {figures} |", flush=True)
    print(f"BLEU signature: {signature}")
    report_startup(model)


def logits_error(
    original: mt.Transformer, network: mt.Transformer, tokenizer: mt.Tokenizer, sources: list[str], references: list
) -> tuple[float, float]:
    """Return the mean and the maximum absolute difference of two models' logits, with the references as targets."""
    errors = []
    for source, (reference, *_) in zip(sources[:NUM_COMPARED], references, strict=False):
        target = [tokenizer.start_id, *tokenizer.encode_target(reference)]
        batch = mx.array([tokenizer.encode(source)]), mx.array([target[: original.config.decoder.max_length]])
        errors.append(mx.abs(original(*batch) - network(*batch)).flatten())
    differences = mx.concatenate(errors)
    return differences.mean().item(), differences.max().item()


def saved_formats(folder: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Save the model in each storage format; yield the name and the folder of each."""
    model, tokenizer = mt.load(folder)
    for name, options in FORMATS.items():
        mt.save(scratch / name, model, tokenizer, **options)
        yield name, scratch / name


def report_startup(model: str | None) -> None:
    """Print the time of the whole command for one sentence, without and with cached compiled kernels."""
    with tempfile.TemporaryDirectory() as cache:
        seconds, text = time_first_sentence(model, {"TMPDIR": cache}, 6)
    print(f"{SENTENCE!r} -> {text!r}: cold {seconds[0]:.2f} s, warm {median(seconds[1:]):.2f} s (median of 5)")


if __name__ == "__main__":
    main()
