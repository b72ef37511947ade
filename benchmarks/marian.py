"""Parity of converted models of Marian with a plain numpy forward pass and beam search.

    python -m benchmarks.marian [--sources 40]

Random models with two layers of width 64 are written in Marian's formats, converted and compared. The reference, in
tests/support/marian_files.py, follows Marian's sources; its beam shrinks with each finished hypothesis, ours does not,
so that ours may find hypotheses with better scores.
"""

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
    EOS,
    OLD_PRE_NORM,
    PRE_NORM,
    SEPARATE,
    STUDENT,
    MarianModel,
    MarianReference,
    write_bin,
    write_npz,
)

DECODERS = {"post-norm": {}, "pre-norm": PRE_NORM, "pre-norm before 1.11": OLD_PRE_NORM, "SSRU": STUDENT}
VOCABULARIES = {"shared": {}, "separate": SEPARATE}
FORMATS = {".npz, float32": None, ".bin, float32": 32, ".bin, 8 bits": 8}
BEAMS = (1, 4, 8)


@click.command()
@click.option("--sources", default=40, show_default=True, help="Random sources for each model.")
def main(sources: int) -> None:
    """Compare scores and beams of random models with the reference."""
    print(conditions(sources=sources))
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


if __name__ == "__main__":
    main()
