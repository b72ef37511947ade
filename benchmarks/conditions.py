"""The line that every benchmark prints first: machine, versions, device and threads, so that a number can be read."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import mlx.core as mx

from mlx_transformer import __version__


def conditions(**settings: object) -> str:
    """What was measured on: `key=value` pairs, the settings of the benchmark last."""
    return " | ".join(f"{name}={value}" for name, value in (facts() | settings).items())


def facts() -> dict[str, object]:
    """What was measured on, without the name of the machine or any path."""
    return {
        "machine": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()}-{platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "mlx": importlib.metadata.version("mlx"),
        "mlx_transformer": __version__,
        "device": str(mx.default_device().type).removeprefix("DeviceType."),
        "blas": blas(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        return names[0] if names else platform.machine()
    if platform.system() == "Darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def blas() -> str:
    """Whether MLX's Linux CPU back end found a fast BLAS loaded before it (see the README); a Mac brings its own."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return "system"
    if "openblas" not in maps.read_text():
        return "reference"
    return f"openblas,threads={os.environ.get('OPENBLAS_NUM_THREADS', 'all')}"
