"""Where the weights of a model are from, as long as they are unchanged."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_transformer.model.adapters import base_modules
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage.checksums import WeightsSource

SAMPLE_SIZE = 256  # elements of an array; all of them would take as long as the loading itself


def record_source(model: Transformer, source: WeightsSource | None) -> None:
    """Record where the weights of a model were read from, with a sample of them to notice later changes."""
    model.weights_source = None if source is None else replace(source, sample=_sample_base(model))


def unchanged_source(model: Transformer) -> WeightsSource | None:
    """Return where the weights of a model were read from; None if they are new or were changed, also in precision.

    An adapter is no change.
    """
    source = model.weights_source
    return source if source is not None and source.sample == _sample_base(model) else None


def _sample_base(model: Transformer) -> bytes:
    """Return elements of each array of a model without its adapter; the same ones in any wider type."""
    has_adapter = model.adapter is not None
    bases, added = (base_modules(model), model.adapter.untied) if has_adapter else ({}, ())
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    changed = tuple(f"{path}." for path in (*bases, *added))
    arrays = {name: array for name, array in arrays.items() if not name.startswith(changed)}
    for path, module in bases.items():
        arrays |= dict(tree_flatten(module.parameters(), prefix=f".{path}"))
    samples = (arrays[name].reshape(-1)[:: max(1, arrays[name].size // SAMPLE_SIZE)] for name in sorted(arrays))
    return b"".join(np.array(sample.astype(mx.float32)).tobytes() for sample in samples)
