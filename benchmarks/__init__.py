"""Benchmarks of this package and of others; see RESULTS.md."""

import importlib
from contextlib import suppress

# torch comes first, because it would use the BLAS that is loaded for MLX instead of its own, and be up to six times as
# slow; mlx_transformer before MLX, so that MLX uses it.
with suppress(ImportError):
    importlib.import_module("torch")
import mlx_transformer  # noqa: E402, F401
