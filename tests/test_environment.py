"""Settings of MLX in the environment, with a stand-in for a Mac, and of the C library."""

import os
import platform
import subprocess
import sys

import pytest

from mlx_transformer import environment
from mlx_transformer.environment import COMMAND_BUFFER_LIMITS, MALLOC_VARIABLES

OPS, MEGABYTES = COMMAND_BUFFER_LIMITS


@pytest.fixture
def mac(monkeypatch):
    """Set the system and the chip, and remove the limits."""
    for name in COMMAND_BUFFER_LIMITS:
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)

    def choose(chip, platform="darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(environment, "chip_name", lambda: chip)

    return choose


def limits():
    return {name: os.environ[name] for name in COMMAND_BUFFER_LIMITS if name in os.environ}


@pytest.mark.parametrize("chip", ["Apple M1", "Apple M2 Pro", "Apple M3 Ultra", "Apple M4 Max"])
def test_both_limits_of_command_buffers_are_raised(mac, chip):
    mac(chip)
    environment.set_command_buffer_limits()
    assert limits() == COMMAND_BUFFER_LIMITS


@pytest.mark.parametrize(
    "chip, platform",
    [
        ("Apple M5", "darwin"),
        ("Apple M12", "darwin"),
        ("VirtualApple @ 2.50GHz", "darwin"),
        ("", "darwin"),
        ("Apple M3", "linux"),
    ],
)
def test_other_chips_and_systems_are_left_alone(mac, chip, platform):
    mac(chip, platform)
    environment.set_command_buffer_limits()
    assert limits() == {}


@pytest.mark.parametrize("name", [OPS, MEGABYTES])
def test_no_limit_is_raised_alone(mac, monkeypatch, name):
    mac("Apple M3")
    monkeypatch.setenv(name, "33")
    environment.set_command_buffer_limits()
    assert limits() == {name: "33"}


def test_limits_are_set_before_mlx_is_imported():
    program = (
        "import sys; sys.platform = 'darwin'\n"
        "import ctypes\n"
        "class Library:\n"
        "    def sysctlbyname(self, name, value, *others):\n"
        "        value.value = b'Apple M2 Max'\n"
        "        return 0\n"
        "ctypes.CDLL = lambda name: Library()\n"
        "import os, mlx_transformer\n"
        f"print('mlx' in sys.modules, os.environ['{OPS}'], os.environ['{MEGABYTES}'])"
    )
    variables = {name: value for name, value in os.environ.items() if name not in COMMAND_BUFFER_LIMITS}
    result = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", *COMMAND_BUFFER_LIMITS.values()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("is_shared", [True, False])
def test_threads_share_an_arena_of_malloc(is_shared):
    program = (
        "import ctypes, threading\n"
        "from mlx_transformer.environment import share_malloc_arena\n"
        f"{is_shared} and share_malloc_arena()\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.fdopen.restype = ctypes.c_void_p\n"
        "allocated = threading.Barrier(5)\n"
        "for _ in range(4):\n"
        "    threading.Thread(target=lambda: (libc.malloc(10000), allocated.wait())).start()\n"
        "allocated.wait()\n"
        "file = ctypes.c_void_p(libc.fdopen(1, b'w'))\n"
        "libc.malloc_info(0, file), libc.fflush(file)"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert (result.stdout.count("<heap ") == 1) is is_shared


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    ("variables", "is_kept"),
    [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "100000"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, False)],
)
def test_freed_memory_is_kept_unless_the_user_has_set_limits(variables, is_kept):
    program = (
        "import ctypes, resource\n"
        "from mlx_transformer.environment import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "def new_pages():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    blocks = [libc.malloc(2**23) for _ in range(4)]\n"
        "    for block in blocks:\n"
        "        ctypes.memset(block, 1, 2**23)\n"
        "    for block in blocks:\n"
        "        libc.free(block)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(new_pages(), new_pages(), new_pages())"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", program], env=inherited | variables, capture_output=True, text=True, check=True
    )
    first, _, third = map(int, result.stdout.split())
    assert first > 10 and (third < first / 10) is is_kept


@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_other_c_libraries_are_left_alone(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    environment.share_malloc_arena()
    environment.keep_freed_memory.__wrapped__()
