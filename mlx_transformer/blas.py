"""A fast BLAS for MLX on Linux: the one in MLX's wheel multiplies matrices many times more slowly."""

import ctypes
import glob
import os
import sys

VARIABLE = "MLX_TRANSFORMER_BLAS"
# Fedora has a library for each kind of threads, and a serial one under the name that other distributions use for any.
OPENBLAS = ("libopenblasp.so.0", "libopenblaso.so.0", "libopenblas.so.0")
MKL = "lib/libmkl_rt.so.*"  # where pip and conda install Intel's MKL in a Python environment
WHEEL_BLAS = "/mlx_cpu.libs/libblas"  # the reference BLAS in MLX's wheel
CPU_FILE = "/proc/cpuinfo"


def load_blas() -> None:
    """Load a fast BLAS, where there is one, for the MLX that is imported later; only on Linux.

    MLX finds its BLAS when `mlx.core` is imported. After that nothing is loaded, because it would have no effect.
    A BLAS that the process already offers to all libraries, as with LD_PRELOAD, is kept. Other libraries that are
    imported later compute with it, too: torch is much slower then, and must be imported first.

    The environment variable MLX_TRANSFORMER_BLAS names another library, or `none`. If that library cannot be used, a
    warning is logged, and MLX uses its own.
    """
    choice = os.environ.get(VARIABLE)
    if sys.platform != "linux" or choice == "none" or "mlx.core" in sys.modules or has_global_blas():
        return
    if library := choice or find_blas():
        try:
            if choice:  # `find_blas` has checked the others
                check_blas(choice)
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            import logging  # takes milliseconds, and only this needs it

            logging.getLogger(__name__).warning(
                "%s is %r, which cannot be used (%s), so MLX uses its own BLAS, which is slow: set it to the path of "
                "another one or to none, or unset it.",
                *(VARIABLE, library, error),
            )


def find_blas() -> str | None:
    """Return a BLAS that MLX can call: the path of this environment's MKL, or the name of an OpenBLAS; None if neither.

    MKL comes first on Intel's CPUs only: there it multiplies few rows, as in a decode step, faster, and on AMD's most
    sizes more slowly (benchmarks/RESULTS.md).
    """
    mkl = glob.glob(os.path.join(glob.escape(sys.prefix), MKL))
    for name in (*mkl, *OPENBLAS) if mkl and is_intel() else (*OPENBLAS, *mkl):
        try:
            check_blas(name)
        except OSError:
            continue
        return name
    return None


def is_intel() -> bool:
    """Whether Linux says that the CPU is made by Intel."""
    try:
        with open(CPU_FILE, errors="replace") as file:
            return "GenuineIntel" in file.read(4096)
    except OSError:
        return False


def check_blas(name: str) -> None:
    """Raise OSError if a library cannot be loaded, or has no BLAS with the 32-bit integers that MLX passes.

    LAPACK is not asked for: MLX's own calls the BLAS that was loaded.
    """
    library = ctypes.CDLL(name)
    if not has_symbol(library, "cblas_sgemm"):
        raise OSError("it has no function cblas_sgemm")
    if has_symbol(library, "openblas_get_config"):
        library.openblas_get_config.restype = ctypes.c_char_p
        if b"USE64BITINT" in library.openblas_get_config():
            raise OSError("its integers have 64 bits, and MLX needs 32")
    if has_symbol(library, "mkl_get_version") and "ILP64" in os.environ.get("MKL_INTERFACE_LAYER", "").upper():
        raise OSError("MKL_INTERFACE_LAYER gives its integers 64 bits, and MLX needs 32")


def has_global_blas() -> bool:
    """Whether the process offers a BLAS to all libraries, which MLX prefers to its own if it is imported later."""
    return has_symbol(ctypes.CDLL(None), "cblas_sgemm")


def has_symbol(library: ctypes.CDLL, name: str) -> bool:
    """Whether a library, or one that it needs, has a function."""
    try:
        library[name]
    except AttributeError:
        return False
    return True


def is_slow() -> bool:
    """Whether MLX, which has been imported, multiplies matrices on the CPU with the BLAS of its wheel for Linux."""
    return sys.platform == "linux" and WHEEL_BLAS in loaded_files() and not has_global_blas()


def loaded_files() -> str:
    """Return the list of files that are mapped into this process's memory; empty where /proc is missing."""
    try:
        with open("/proc/self/maps", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def speed_advice() -> str | None:
    """Return a line about what would make MLX faster on this CPU; None if it is fast, or if the user chose the BLAS."""
    if os.environ.get(VARIABLE) or not is_slow():
        return None
    if find_blas():
        return (
            "MLX runs many times slower than it could, because mlx.core was imported before mlx_transformer: import "
            "mlx_transformer first, and MLX uses a fast BLAS."
        )
    return (
        "MLX runs many times slower than it could, because OpenBLAS is not installed: install it with the system's "
        "packages (apt install libopenblas0-pthread, dnf install openblas-threads, pacman -S openblas)."
    )
