"""Writes the model that the training of the bundled model starts from: an earlier one, enlarged, with a new vocabulary.

    python -m benchmarks.bundled_start CORPUS.tsv MODEL

New layers and units begin as zero and change nothing; pieces of the new vocabulary begin as the mean of the old pieces
that spell them. So training goes on from what the earlier model knows.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import mlx.core as mx

import mlx_transformer as mt
from mlx_transformer.config.training import AUGMENTATIONS
from mlx_transformer.data.augmentation import AugmentedCorpora, Rates
from mlx_transformer.model.fused_projections import fuse_projections, split_projections

Arrays = dict[str, mx.array]
RATES = Rates(
    join_sentences=0.15, uppercase=0.06, lowercase=0.08, drop_final_punctuation=0.08, copy_numbers=0.7, copy_names=0.08
)
assert list(Rates._fields) == AUGMENTATIONS


@click.command()
@click.argument("corpus", type=click.Path(exists=True))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--model", help="The earlier model, a folder; default: the bundled model.")
@click.option("--vocab-size", default=8000, show_default=True)
@click.option("--encoder-layers", default=6, show_default=True)
@click.option("--mlp-dims", default=1024, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    corpus: str, output: Path, model: str | None, vocab_size: int, encoder_layers: int, mlp_dims: int, seed: int
) -> None:
    """Learn a vocabulary from CORPUS and write the enlarged model to OUTPUT."""
    mx.random.seed(seed)
    old, old_tokenizer = mt.load(model, dtype="float32")
    pairs = list(AugmentedCorpora([corpus], RATES, seed))
    tokenizer = mt.Tokenizer.train([pair.source for pair in pairs], [pair.target for pair in pairs], vocab_size)
    encoder = replace(old.config.encoder, num_layers=encoder_layers, mlp_dims=mlp_dims)
    config = replace(
        old.config,
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
        encoder=encoder,
        decoder=replace(old.config.decoder, mlp_dims=mlp_dims),
    )
    new = mt.Transformer(config, old.search_defaults)
    arrays = split_projections(new.parameters())
    before = split_projections(old.parameters())
    arrays |= enlarge_layers(arrays, before, old.config.encoder.num_layers)
    arrays["source_embedding.weight"] = spell_embeddings(
        before["source_embedding.weight"], old_tokenizer, arrays["source_embedding.weight"], tokenizer
    )
    new.load_weights(list(fuse_projections(arrays).items()))
    mt.save(output, new, tokenizer)
    click.echo(f"{output}: {new.num_parameters:,} parameters, {tokenizer.source_vocab_size} pieces")


def enlarge_layers(new: Arrays, old: Arrays, old_layers: int) -> Arrays:
    """Return the arrays of the new model that begin as old ones, or as zero."""
    layers = len({name.split(".")[2] for name in new if name.startswith("encoder.layers.")})
    step = layers // old_layers
    arrays = {}
    for name, array in new.items():
        parts = name.split(".")
        if name.startswith("encoder.layers."):
            if int(parts[2]) % step:  # an added layer, which changes nothing at first
                if ".out_proj." in name or ".down_proj." in name:
                    arrays[name] = mx.zeros_like(array)
                continue
            parts[2] = str(int(parts[2]) // step)
        source = old.get(".".join(parts))
        if source is not None and "embedding" not in name:
            arrays[name] = widen(array, source, zero=".down_proj." in name)
    return arrays


def widen(new: mx.array, old: mx.array, zero: bool) -> mx.array:
    """Return the old array in the corner of the new one, of which the rest is zero or stays."""
    result = mx.zeros_like(new) if zero else mx.array(new)
    result[tuple(slice(size) for size in old.shape)] = old
    return result


def spell_embeddings(old: mx.array, old_tokenizer: mt.Tokenizer, new: mx.array, tokenizer: mt.Tokenizer) -> mx.array:
    """Return embeddings of the new pieces: the mean of those of the old pieces that spell them."""
    old_ids = old_tokenizer.source.token_to_id
    rows = [new[0]] * len(new)
    for index in range(len(new)):
        piece = tokenizer.source.id_to_token(index)
        if (same := old_ids(piece)) is not None:
            rows[index] = old[same]
        elif (same := old_ids(piece.lower())) is not None:
            rows[index] = old[same] + 0.3 * new[index]  # in capitals
        elif spelled := split_greedily(piece, old_ids):
            rows[index] = old[mx.array(spelled)].mean(axis=0)
        else:
            rows[index] = new[index]
    return mx.stack(rows)


def split_greedily(piece: str, token_to_id: Callable[[str], int | None]) -> list[int]:
    """Return the ids of the longest pieces that spell a piece, from the left; unknown characters are skipped."""
    ids = []
    while piece:
        length = next((n for n in range(len(piece), 0, -1) if token_to_id(piece[:n]) is not None), 0)
        if length and (token := token_to_id(piece[:length])) is not None:
            ids.append(token)
        piece = piece[max(length, 1) :]
    return ids


if __name__ == "__main__":
    main()
