"""Settings that MLX and the C library read once: MLX when it first uses a device."""

import os
import re
import sys
from contextlib import suppress

# MLX hands a command buffer to Metal after 20 to 50 kernels, or 40 to 50 million elements of inputs, so that a decode
# step needs several. Both limits raised to these values, with the same outputs, gave others 5 to 8 % of a model of many
# small kernels on an M3 Ultra (ml-explore/mlx#4521); the first alone is a loss on some models, and M5 gains nothing
# (lablup/mlxcel#353, #358). We have not measured it: `python -m benchmarks.mac --command-buffers` does.
COMMAND_BUFFER_LIMITS = {"MLX_MAX_OPS_PER_BUFFER": "1000", "MLX_MAX_MB_PER_BUFFER": "400"}
MALLOPT_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h
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
    if sys.platform == "linux":
        import ctypes  # takes milliseconds, and only Linux needs it

        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(MALLOPT_ARENA_MAX, 1)


def chip_name() -> str:
    """Return the name of a Mac's chip, such as "Apple M3 Ultra"; empty if the system does not tell it."""
    import ctypes  # takes milliseconds, and only Macs need it

    name = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(name))
    is_error = ctypes.CDLL(None).sysctlbyname(b"machdep.cpu.brand_string", name, ctypes.byref(size), None, 0)
    return "" if is_error else name.value.decode(errors="replace")
