"""Settings that MLX and the C library read once: MLX when it first uses a device."""

import functools
import os
import re
import sys
from contextlib import suppress

# MLX hands a command buffer to Metal after 20 to 50 kernels, or 40 to 50 million elements of inputs, so that a decode
# step needs several. Both limits raised to these values, with the same outputs, gave others 5 to 8 % of a model of many
# small kernels on an M3 Ultra (ml-explore/mlx#4521); the first alone is a loss on some models, and M5 gains nothing
# (lablup/mlxcel#353, #358). We have not measured it: `python -m benchmarks.mac --command-buffers` does.
COMMAND_BUFFER_LIMITS = {"MLX_MAX_OPS_PER_BUFFER": "1000", "MLX_MAX_MB_PER_BUFFER": "400"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # options in glibc's malloc.h
MALLOC_LIMITS = {
    M_MMAP_THRESHOLD: 32 * 2**20,
    M_TRIM_THRESHOLD: 64 * 2**20,
}  # bytes; the highest that glibc sets itself
MALLOC_VARIABLES = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}  # with which users set them
CHIPS = re.compile(r"Apple M[1-4]\b")


def set_command_buffer_limits() -> None:
    """Raise the limits of Metal's command buffers on chips that gain by it, unless either is set already."""
    if sys.platform == "darwin" and not COMMAND_BUFFER_LIMITS.keys() & os.environ.keys() and CHIPS.match(chip_name()):
        os.environ.update(COMMAND_BUFFER_LIMITS)


def share_malloc_arena() -> None:
    """Let all threads allocate from one arena of glibc, whose memory stays flat under load; elsewhere do nothing.

    With an arena for each thread, the buffers that MLX allocates in one and frees in another leave gaps: in two minutes
    with 64 clients a server grew from 310 to 394 MB, and stayed between 325 and 357 MB with one arena.
    """
    _set_malloc_options({M_ARENA_MAX: 1})


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep 64 MB of memory that is freed, unless the user has set its limits; elsewhere do nothing.

    On a CPU MLX allocates the arrays of each decode step anew. At first glibc returns each block of more than 128 KB to
    the system, which clears the pages of the next one: up to an eighth of a step. It raises its limits as larger blocks
    are freed, at most to these.
    """
    if not MALLOC_VARIABLES & os.environ.keys():
        _set_malloc_options(MALLOC_LIMITS)


def _set_malloc_options(options: dict[int, int]) -> None:
    if sys.platform == "linux":
        import ctypes  # takes milliseconds, and only Linux needs it

        with suppress(AttributeError):  # another C library
            for option, value in options.items():
                ctypes.CDLL(None).mallopt(option, value)


def chip_name() -> str:
    """Return the name of a Mac's chip, such as "Apple M3 Ultra"; empty if the system does not tell it."""
    import ctypes  # takes milliseconds, and only Macs need it

    name = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(name))
    is_error = ctypes.CDLL(None).sysctlbyname(b"machdep.cpu.brand_string", name, ctypes.byref(size), None, 0)
    return "" if is_error else name.value.decode(errors="replace")
