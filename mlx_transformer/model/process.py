"""Checks before MLX runs in a process: not after a fork, and not with kernels that other users could have written.

MLX would wait for ever for threads that only the parent of a forked process has.
"""

import os

from mlx_transformer.model.compilation import check_kernel_cache

_process = {"has_models": False, "is_forked": False}


def check_process() -> None:
    """Raise RuntimeError in a process that was forked after its parent had made a model; see `check_kernel_cache`."""
    if _process["is_forked"]:
        raise RuntimeError(
            "MLX does not work in a process that was forked after a model was made: start processes with the method "
            '"spawn" (multiprocessing.get_context("spawn")), or use threads.'
        )
    _process["has_models"] = True
    check_kernel_cache()


def _mark_forked() -> None:
    _process["is_forked"] = _process["has_models"]


os.register_at_fork(after_in_child=_mark_forked)
