"""The line that every benchmark prints first: machine, versions, device and threads."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import mlx.core as mx

from mlx_transformer import __version__, blas


def conditions(**settings: object) -> str:
    """Return the environment and the settings of a benchmark as one line of `key=value` pairs."""
    return " | ".join(f"{name}={value}" for name, value in (environment() | settings).items())


def environment() -> dict[str, object]:
    """Return facts about the machine and the software, without host names or paths."""
    return {
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()}-{platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "mlx": importlib.metadata.version("mlx"),
        "mlx_transformer": __version__,
        "device": str(mx.default_device().type).removeprefix("DeviceType."),
        "blas": blas_name(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def processor_name() -> str:
    """Return the name of the processor, or its architecture if the system does not report a name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        return names[0] if names else platform.machine()
    if platform.system() == "Darwin":
        result = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return result.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def blas_name() -> str:
    """Return the BLAS that MLX's CPU back end uses: on Linux MKL or OpenBLAS where installed, on a Mac the system's."""
    if blas.is_slow():
        return "reference"
    for name, part in ("mkl", "/libmkl_rt."), ("openblas", "openblas"):  # torch may have loaded another BLAS, too
        if part in blas.loaded_files():
            threads = f"threads={os.environ.get(f'{name.upper()}_NUM_THREADS', 'all')}"
            preloaded = ["preloaded"] if "LD_PRELOAD" in os.environ else []
            return ",".join([name, *preloaded, *openblas_kernels(), threads])
    return "system"


def openblas_kernels() -> list[str]:
    """Return for which processor the kernels of MLX's OpenBLAS are; nothing without OpenBLAS."""
    try:
        function = ctypes.CDLL(None).openblas_get_corename
    except AttributeError:
        return []
    function.restype = ctypes.c_char_p
    return [f"kernels={function().decode()}"]
