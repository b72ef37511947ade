"""Wired memory: during generation, macOS keeps the memory of a Metal GPU resident instead of paging it out."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

# Re-entrant, because the garbage collector may close an abandoned generator, and so end its block, at any time.
_lock = threading.RLock()
_num_blocks = 0
_former_limit = 0


@contextmanager
def wired_memory() -> Iterator[None]:
    """Wire memory up to the size that Metal recommends during a block; other devices are left alone.

    The limit belongs to the process. Blocks may nest and overlap in several threads: the first one sets the limit, and
    the last one to end restores the former limit.
    """
    global _num_blocks, _former_limit
    if not is_on_metal():
        yield
        return
    with _lock:
        if not _num_blocks:
            _former_limit = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
        _num_blocks += 1
    try:
        yield
    finally:
        try:
            mx.synchronize()  # the limit must not change while a step of this thread is running
        finally:
            with _lock:
                _num_blocks -= 1
                if not _num_blocks:
                    mx.set_wired_limit(_former_limit)


def is_on_metal() -> bool:
    """Whether the default device is a GPU that MLX drives by Metal."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu
