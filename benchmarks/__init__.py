"""Benchmarks of this package and of others; see RESULTS.md."""

import mlx_transformer  # noqa: F401 (before MLX, so that MLX uses OpenBLAS)
