"""A clear error in forked processes, where MLX would wait for ever for threads that only the parent has."""

import os

_process = {"has_models": False, "is_forked": False}


def check_process() -> None:
    """Raise RuntimeError in a process that was forked after its parent had made a model."""
    if _process["is_forked"]:
        raise RuntimeError(
            "MLX does not work in a process that was forked after a model was made: start processes with the method "
            '"spawn" (multiprocessing.get_context("spawn")), or use threads.'
        )
    _process["has_models"] = True


def _mark_forked() -> None:
    _process["is_forked"] = _process["has_models"]


os.register_at_fork(after_in_child=_mark_forked)
