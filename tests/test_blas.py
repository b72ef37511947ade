"""A fast BLAS for MLX on Linux: which library is loaded, when, and what a user reads where there is none."""

import ctypes
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support import echo_model
from support.paths import ROOT

import mlx_transformer as mt
from mlx_transformer import blas
from mlx_transformer.cli import main
from mlx_transformer.cli.run_stats import RunStats

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MLX has a fast BLAS elsewhere")
needs_fast_blas = pytest.mark.skipif(not blas.find_blas(), reason="needs OpenBLAS or MKL")
needs_wheel = pytest.mark.skipif(
    blas.WHEEL_BLAS not in blas.loaded_files(), reason="needs MLX's wheel for Linux, which has a BLAS of its own"
)
needs_compiler = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")
# Prints how often two matrices were multiplied in a quarter of a second.
MULTIPLY = """
import time
import mlx.core as mx
mx.set_default_device(mx.cpu)
matrix, count, start = mx.ones((512, 512)), 0, time.perf_counter()
mx.eval(matrix @ matrix)
while time.perf_counter() - start < 0.25:
    mx.eval(matrix @ matrix)
    count += 1
print(count)
"""
MAPS = "from mlx_transformer import blas; print(blas.loaded_files())"
# Prints the name of the BLAS that was found, and whether one was loaded.
REPORT = """
from mlx_transformer import blas
print(blas.find_blas())
print(blas.has_global_blas())
"""


def run(program, **environment):
    """Run a program in a process that has no BLAS yet; return its lines and what it wrote to standard error."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", blas.VARIABLE)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=inherited | environment, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


def load_with(prefix, cpu):
    """Return a program that loads a BLAS as with another Python environment and another CPU, then reports."""
    (prefix / "cpuinfo").write_text(f"processor\t: 0\n{cpu}\n\nprocessor\t: 1\n")
    return (
        f"import os, sys\nchoice = os.environ.get({blas.VARIABLE!r}, '')\nos.environ[{blas.VARIABLE!r}] = 'none'\n"
        f"from mlx_transformer import blas\nos.environ[{blas.VARIABLE!r}] = choice\n"
        f"sys.prefix, blas.CPU_FILE = {str(prefix)!r}, {str(prefix / 'cpuinfo')!r}\nblas.load_blas()\n"
        f"{REPORT}\n{MAPS}"
    )


def compile_library(path, code):
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=code, text=True, check=True)


@needs_fast_blas
class TestLoading:
    @needs_wheel
    def test_matrix_products_are_many_times_faster(self):
        program = f"import mlx_transformer\n{MULTIPLY}"
        (fast,), _ = run(program, OPENBLAS_NUM_THREADS="1")
        (slow,), _ = run(program, OPENBLAS_NUM_THREADS="1", MLX_TRANSFORMER_BLAS="none")
        assert int(fast) > 5 * int(slow)  # about 50 on an idle machine

    @needs_wheel
    @pytest.mark.parametrize(
        ("imports", "slow"), [("mlx_transformer, mlx.core", "False"), ("mlx.core, mlx_transformer", "True")]
    )
    def test_only_before_mlx(self, imports, slow):
        program = f"import {imports}; from mlx_transformer import blas; print(blas.is_slow(), blas.has_global_blas())"
        (line,), _ = run(program)
        assert line == f"{slow} {slow == 'False'}"

    @needs_wheel
    def test_the_advice_names_the_cause(self):
        program = "import {}; from mlx_transformer import blas; print(blas.speed_advice())"
        (line,), _ = run(program.format("mlx.core"))
        assert "import mlx_transformer first" in line
        assert run(program.format("mlx_transformer, mlx.core"))[0] == ["None"]
        assert run(program.format("mlx.core"), MLX_TRANSFORMER_BLAS="none")[0] == ["None"]  # the user's choice

    def test_a_library_that_was_preloaded_is_kept(self):
        library = blas.find_blas()
        (_, loaded), error = run(REPORT, LD_PRELOAD=library, MLX_TRANSFORMER_BLAS="/does/not/exist.so")
        assert loaded == "True" and error == ""

    def test_none_loads_nothing(self):
        assert run(REPORT, MLX_TRANSFORMER_BLAS="none")[0][1] == "False"
        assert run(REPORT)[0][1] == run(REPORT, MLX_TRANSFORMER_BLAS="")[0][1] == "True"

    @pytest.mark.parametrize(
        ("path", "reason"),
        [("/does/not/exist.so", "No such file"), ("/etc/passwd", "invalid ELF header"), ("libm.so.6", "cblas_sgemm")],
    )
    def test_a_library_that_cannot_be_used_is_one_warning(self, path, reason):
        (_, loaded), error = run(REPORT, MLX_TRANSFORMER_BLAS=path)
        assert loaded == "False"
        assert len(error.splitlines()) == 1 and reason in error and f"MLX_TRANSFORMER_BLAS is {path!r}" in error

    def test_new_processes_load_it_too_and_exit(self, tmp_path):
        (tmp_path / "products.py").write_text(
            "import multiprocessing\nimport mlx_transformer\nimport mlx.core as mx\n"
            "def multiply(size):\n    return (mx.ones((size, size)) @ mx.ones((size, size))).sum().item()\n"
            "if __name__ == '__main__':\n    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
            "        print(multiply(64), *pool.map(multiply, [64, 64]))\n"
        )
        program = f"import runpy; runpy.run_path({str(tmp_path / 'products.py')!r}, run_name='__main__')"
        (line,), error = run(program, PYTHONPATH=f"{tmp_path}:{ROOT}")
        assert line.split() == [str(float(64**3))] * 3 and error == ""

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["libopenblasp.so.0", "libopenblaso.so.0", "libopenblas.so.0"], "libopenblasp.so.0"),
            (["libopenblaso.so.0", "libopenblas.so.0"], "libopenblaso.so.0"),
            (["libopenblas.so.0"], "libopenblas.so.0"),
        ],
    )
    def test_the_library_with_threads_comes_first(self, names, expected, tmp_path):
        library = next(line.split()[-1] for line in run(MAPS)[0] if "openblas" in line)
        for name in names:
            (tmp_path / name).symlink_to(library)
        (found, loaded), _ = run(REPORT, LD_LIBRARY_PATH=str(tmp_path))
        assert (found, loaded) == (expected, "True")


@pytest.fixture
def slow_blas(monkeypatch):
    """A machine without OpenBLAS."""
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    monkeypatch.setattr(blas, "is_slow", lambda: True)
    monkeypatch.setattr(blas, "find_blas", lambda: None)


ADVICE = "because OpenBLAS is not installed"


class TestAdvice:
    @pytest.mark.cpu
    def test_training_begins_with_it(self, slow_blas, tmp_path, caplog):
        options = {"train": ("absent.tsv",), "valid": ("absent.tsv",), "output": str(tmp_path / "run")}
        with pytest.raises(FileNotFoundError):
            mt.train(mt.TrainingConfig(**options))
        assert [ADVICE in record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [True]

    @pytest.mark.cpu
    def test_verbose_generation_ends_with_it(self, slow_blas, monkeypatch):
        echo_model.install(monkeypatch.setitem)
        for options, lines in (["--verbose"], 1), ([], 0):
            result = CliRunner().invoke(main, ["generate", *options, "one"])
            assert result.stderr.count(ADVICE) == lines and result.stdout == "ONE\n"

    def test_a_fast_machine_and_one_with_a_gpu_do_not_need_it(self, slow_blas, monkeypatch):
        assert ADVICE in blas.speed_advice()
        monkeypatch.setenv(blas.VARIABLE, "none")
        assert blas.speed_advice() is None
        monkeypatch.delenv(blas.VARIABLE)
        monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
        assert ADVICE not in RunStats().lines()


INTEL, AMD = "vendor_id : GenuineIntel", "vendor_id : AuthenticAMD"


@needs_compiler
class TestMKL:
    """Of the Python environment, with a stand-in."""

    LIBRARY = "void cblas_sgemm(void) {}\nvoid mkl_get_version(void) {}\n"

    @pytest.fixture
    def library(self, tmp_path):
        (tmp_path / "lib").mkdir()
        compile_library(tmp_path / "lib" / "libmkl_rt.so.2", self.LIBRARY)
        return str(tmp_path / "lib" / "libmkl_rt.so.2")

    def test_it_is_loaded_rather_than_openblas(self, library, tmp_path):
        (found, loaded, *maps), error = run(load_with(tmp_path, INTEL))
        assert (found, loaded, error) == (library, "True", "")
        assert not any("openblas" in line for line in maps)

    def test_amd_cpus_use_it_only_without_openblas(self, library, tmp_path):
        for name in blas.OPENBLAS:
            compile_library(tmp_path / name, "void cblas_sgemm(void) {}\n")
        assert run(load_with(tmp_path, AMD), LD_LIBRARY_PATH=str(tmp_path))[0][0] == blas.OPENBLAS[0]
        for name in blas.OPENBLAS:
            compile_library(tmp_path / name, "")
        assert run(load_with(tmp_path, AMD), LD_LIBRARY_PATH=str(tmp_path))[0][0] == library

    def test_another_library_can_be_chosen(self, library, tmp_path):
        _, loaded, *_ = run(load_with(tmp_path, INTEL), MLX_TRANSFORMER_BLAS="none")[0]
        assert loaded == "False"

    @pytest.mark.parametrize(("layer", "is_usable"), [("LP64,GNU", True), ("GNU,ILP64", False), ("ilp64", False)])
    def test_integers_of_64_bits_are_refused(self, library, tmp_path, layer, is_usable):
        found = run(load_with(tmp_path, INTEL), MKL_INTERFACE_LAYER=layer)[0][0]
        assert (found == library) is is_usable


class TestCheck:
    CONFIG = 'const char *openblas_get_config(void) {{ return "OpenBLAS 0.3.21 {}DYNAMIC_ARCH"; }}\n'
    PRODUCT = "void cblas_sgemm(void) {}\n"

    @needs_compiler
    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            (PRODUCT + CONFIG.format(""), True),
            (PRODUCT + CONFIG.format("USE64BITINT "), False),
            (CONFIG.format(""), False),
            ("void cblas_sgemm64_(void) {}\n", False),
        ],
        ids=["32 bits", "64 bits", "no products", "64 bits by their names"],
    )
    def test_only_a_library_with_products_of_32_bit_integers_is_loaded(self, code, expected, tmp_path):
        for name in blas.OPENBLAS:
            compile_library(tmp_path / name, code)
        (found, loaded), error = run(REPORT, LD_LIBRARY_PATH=str(tmp_path))
        assert (found == blas.OPENBLAS[0], loaded == "True", error) == (expected, expected, "")

    def test_the_next_library_is_tried_after_one_that_cannot_be_loaded(self, monkeypatch):
        tried = []

        def load(name):
            tried.append(name)
            raise OSError("invalid ELF header")

        monkeypatch.setattr(ctypes, "CDLL", load)
        assert blas.find_blas() is None
        assert tuple(tried) == blas.OPENBLAS

    def test_other_systems_load_nothing(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(ctypes, "CDLL", None)
        blas.load_blas()
        assert blas.speed_advice() is None
