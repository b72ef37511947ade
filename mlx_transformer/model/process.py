"""Checks before MLX runs in a process: not after a fork, and not with kernels that other users could have written.

MLX would wait for ever for threads that only the parent of a forked process has.
"""

import os

from mlx_transformer.model.compilation import check_kernel_cache

_has_models = _is_forked = False


def check_process() -> None:
    """Check, before MLX runs, that it can; see `check_kernel_cache`.

    Raises:
        RuntimeError: In a process that was forked after its parent had made a model.
    """
    global _has_models
    if _is_forked:
        raise RuntimeError(
            "MLX does not work in a process that was forked after a model was made: start processes with the method "
            '"spawn" (multiprocessing.get_context("spawn")), or use threads.'
        )
    _has_models = True
    check_kernel_cache()


def _mark_forked() -> None:
    global _is_forked
    _is_forked = _has_models


os.register_at_fork(after_in_child=_mark_forked)
