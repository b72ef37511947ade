"""Parity of converted models of Marian with a plain numpy forward pass and beam search, or with Marian itself.

    python -m benchmarks.marian [--sources 40] [--marian pymarian]

Random models with two layers of width 64 are written in Marian's formats, converted and compared. The reference, in
tests/support/marian_files.py, follows Marian's sources; its beam shrinks with each finished hypothesis, ours does not,
so that ours may find hypotheses with better scores. --marian names the program of `pip install pymarian` (a gigabyte,
best in an environment of its own), which then scores and translates in place of the reference.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click
import mlx.core as mx
import numpy as np

import mlx_transformer as mt
from benchmarks.conditions import conditions
from mlx_transformer.weights import convert

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.marian_files import (
    AVERAGE,
    EOS,
    OLD_PRE_NORM,
    PRE_NORM,
    RMS_NORM,
    SEPARATE,
    STUDENT,
    MarianModel,
    MarianReference,
    write_bin,
    write_npz,
)

NEW = {"version": "v1.12.42"}
# What Marian itself is compared on; it decodes pre-norm self-attention in another way than it scores.
VARIANTS = {
    "post-norm": {},
    "two vocabularies": SEPARATE,
    "gelu": {"transformer-ffn-activation": "gelu"} | NEW,
    "normalised embeddings, final norms": {"transformer-postprocess-emb": "nd", "transformer-postprocess-top": "n"},
    "RMSNorm": RMS_NORM,
    "tied layers": {"dec-depth": 4, "transformer-tied-layers": [1, 1, 2, 1]},
    "no projection": {"transformer-no-projection": True},
    "deep feed-forward networks": {"transformer-ffn-depth": 4, "transformer-decoder-ffn-depth": 3},
    "no positions, no bias of the output layer": {
        "transformer-disable-position-embeddings": True,
        "output-omit-bias": True,
    },
    "pre-norm": PRE_NORM | NEW,
    "SSRU": STUDENT,
    "SSRU with a projection": STUDENT | {"transformer-rnn-projection": True},
    "pre-norm SSRU": STUDENT | PRE_NORM | NEW,
    "average attention": AVERAGE,
    "average attention, the mean alone": AVERAGE | {"transformer-aan-depth": 1, "transformer-aan-nogate": True},
}
DECODERS = {"post-norm": {}, "pre-norm": PRE_NORM, "pre-norm before 1.11": OLD_PRE_NORM, "SSRU": STUDENT}
VOCABULARIES = {"shared": {}, "separate": SEPARATE}
FORMATS = {".npz, float32": None, ".bin, float32": 32, ".bin, 8 bits": 8}
BEAMS = (1, 4, 8)


@click.command()
@click.option("--sources", default=40, show_default=True, help="Random sources for each model.")
@click.option("--marian", help="The program of pymarian, to compare with Marian itself.")
def main(sources: int, marian: str | None) -> None:
    """Compare scores and beams of random models with the reference."""
    print(conditions(sources=sources))
    if marian is not None:
        print(
            "| model | largest difference of a target's score | same best text, beam 1, 4, 8 | better: ours, theirs |"
        )
        print("|---|---|---|---|")
        for name, options in VARIANTS.items():
            difference, same, ours, theirs = compare_with_marian(marian, options, sources)
            counts = ", ".join(map(str, same))
            print(f"| {name} | {difference:.1e} | {counts} of {sources} | {ours}, {theirs} |")
        return
    print("| decoder | vocabularies | format | largest difference of a token's score | same best text, beam 1, 4, 8 |")
    print("|---|---|---|---|---|")
    for decoder, options in DECODERS.items():
        for kind, vocabularies in VOCABULARIES.items():
            for name, bits in FORMATS.items():
                difference, same = compare(options | vocabularies, bits, sources)
                counts = ", ".join(f"{same[beam]}" for beam in BEAMS)
                print(f"| {decoder} | {kind} | {name} | {difference:.1e} | {counts} of {sources} |")


def compare(options: dict, bits: int | None, count: int) -> tuple[float, dict[int, int]]:
    """Return the largest difference of a score, and the number of sources with the same best text for each beam."""
    written = MarianModel(options, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        if bits is None:
            path, tensors = write_npz(Path(folder) / "model.npz", written), written.tensors
        else:
            path = Path(folder) / "model.bin"
            tensors = write_bin(path, written, bits if bits < 32 else None)
        model, _ = convert.load(path)
    reference = MarianReference(written.options, tensors)
    rng = np.random.default_rng(0)
    source_size, target_size = written.options["dim-vocabs"]
    difference, same = 0.0, dict.fromkeys(BEAMS, 0)
    for _ in range(count):
        source = [*map(int, rng.integers(2, source_size, rng.integers(2, 8))), EOS]
        target = [*map(int, rng.integers(2, target_size, rng.integers(1, 8))), EOS]
        scores = mt.score_ids(model, mx.array([source]), mx.array([[model.config.start_id, *target]]))[0][0]
        expected = reference.log_probs(reference.encode(source), target[:-1])[range(len(target)), target]
        difference = max(difference, float(np.abs(np.array(scores) - expected).max()))
        for beam in BEAMS:
            search = replace(model.search_defaults, beam_size=beam, num_hypotheses=1, max_length_ratio=3.0)
            ((best,),) = mt.generate_ids(model, mx.array([source]), search)
            same[beam] += best.ids == reference.search(source, beam)[0][1]
    return difference, same


def compare_with_marian(program: str, options: dict, count: int) -> tuple[float, list[int], int, int]:
    """Return the largest difference of targets' scores, how many best texts are the same, and how many better ones."""
    written = MarianModel(options, seed=3)
    rng = np.random.default_rng(0)
    sizes = written.options["dim-vocabs"]
    texts = [[rng.integers(2, size, rng.integers(1, 7)).tolist() for _ in range(count)] for size in sizes]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        model, _ = convert.load(write_npz(folder / "model.npz", written))
        for side, size, lines in zip(("source", "target"), sizes, texts, strict=True):
            words = ["</s>", "<unk>", *(f"w{i}" for i in range(2, size))]
            (folder / f"{side}.yml").write_text("".join(f'"{word}": {i}\n' for i, word in enumerate(words)))
            (folder / side).write_text("".join(" ".join(f"w{i}" for i in line) + "\n" for line in lines))
        sides = [str(folder / "source"), str(folder / "target")]
        scores = [float(line) for line in run_marian(program, folder, "score", "-t", *sides)]
        totals = [
            sum(
                mt.score_ids(model, mx.array([[*source, EOS]]), mx.array([[model.config.start_id, *target, EOS]]))[0][0]
            )
            for source, target in zip(*texts, strict=True)
        ]
        difference = max(abs(ours - theirs) for ours, theirs in zip(totals, scores, strict=True))
        same, better = [0] * len(BEAMS), [0, 0]
        for index, beam in enumerate(BEAMS):
            search = replace(model.search_defaults, beam_size=beam, num_hypotheses=1, max_length_ratio=3.0)
            arguments = ("decode", "-b", str(beam), "--n-best", "--max-length-factor", "3", "-i", sides[0])
            fields = [line.split(" ||| ") for line in run_marian(program, folder, *arguments)]
            best = {int(number): (text, float(score)) for number, text, _, score in reversed(fields)}
            for number, source in enumerate(texts[0]):
                ((ours,),) = mt.generate_ids(model, mx.array([[*source, EOS]]), search)
                text, score = best[number]
                if " ".join(f"w{i}" for i in ours.ids) == text:
                    same[index] += 1
                else:
                    better[ours.score < score] += 1
    return difference, same, *better


def run_marian(program: str, folder: Path, command: str, *arguments: str) -> list[str]:
    """Run a command of Marian on a model in a folder, and return the lines that it writes."""
    vocabularies = [str(folder / f"{side}.yml") for side in ("source", "target")]
    options = ["-m", str(folder / "model.npz"), "-v", *vocabularies, "--cpu-threads", "1", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "PYTHONPATH")}
    result = subprocess.run(
        [program, command, *options, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return result.stdout.splitlines()


if __name__ == "__main__":
    main()
