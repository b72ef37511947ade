"""Benchmarks of this package and of others; see RESULTS.md."""

from contextlib import suppress

# torch comes first, because it would use the BLAS that is loaded for MLX instead of its own, and be up to six times as
# slow; mlx_transformer before MLX, so that MLX uses it.
with suppress(ImportError):
    import torch  # noqa: F401
import mlx_transformer  # noqa: F401
