"""Packaging: one package in sdist and wheel, both ways to start it in a checkout, bounds, and a fast `--help`."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from support.pages import write_python
from support.paths import ROOT

MODEL_FILES = ("README.md", "config.json", "model.safetensors", "tokenizer.json")


def run(*command, cwd):
    # A checkout found on the path would hide what was installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy the tree as in a fresh clone, with a second (empty) model beside the bundled one."""
    folder = tmp_path_factory.mktemp("checkout")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    model = folder / "weights" / "pretrained" / "a-b"
    model.mkdir(parents=True)
    for name in MODEL_FILES:
        (model / name).write_text("x")
    return folder


@pytest.fixture(scope="module")
def distributions(checkout, tmp_path_factory):
    """Return the files of the sdist, of the wheel built from it, and of the wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder / "both", cwd=checkout)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "direct", cwd=checkout)
    with tarfile.open(next((folder / "both").glob("*.tar.gz"))) as sdist:
        files = {"sdist": {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in sdist.getnames()}}
    for key in ("both", "direct"):
        with zipfile.ZipFile(next((folder / key).glob("*.whl"))) as wheel:
            files[key] = set(map(PurePosixPath, wheel.namelist()))
    return files


@pytest.mark.packaging
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdist", "both", "direct"])
def test_distribution_contains_one_complete_package(distributions, kind):
    files = distributions[kind]
    tops = {path.parts[0] for path in files if path.parts}
    assert not tops & {"cli", "weights"}
    if kind != "sdist":
        assert {top for top in tops if not top.endswith(".dist-info")} == {"mlx_transformer"}
    modules = {path.relative_to(ROOT) for path in (ROOT / "mlx_transformer").glob("*.py*")}
    modules |= {"mlx_transformer" / path.relative_to(ROOT) for path in (ROOT / "cli").glob("*.py")}
    modules |= {"mlx_transformer" / path.relative_to(ROOT) for path in (ROOT / "weights").glob("*.py")}
    expected = {PurePosixPath(path) for path in modules} | {PurePosixPath("mlx_transformer/py.typed")}
    expected |= {PurePosixPath("mlx_transformer/pretrained/known_models.toml")}
    static = (ROOT / "mlx_transformer" / "server" / "static").iterdir()
    expected |= {PurePosixPath(path.relative_to(ROOT)) for path in static}
    expected |= {PurePosixPath("mlx_transformer/weights/pretrained/a-b", name) for name in MODEL_FILES}
    assert expected - files == set()


@pytest.fixture(scope="module")
def python(checkout, tmp_path_factory):
    """Return the Python of an environment where the checkout is installed, as users do, not editable."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", ".", cwd=checkout)
    # Dependencies come from the environment of the tests; a .pth inside that one (an editable install) is not read.
    (site_packages(python) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def site_packages(python):
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd="/").strip())


@pytest.mark.packaging
@pytest.mark.slow
def test_plain_install_works_inside_the_checkout(checkout, python, tmp_path):
    site = site_packages(python)
    assert {"mlx_transformer"} <= {path.name for path in site.iterdir()}
    assert not {"cli", "weights"} & {path.name for path in site.iterdir()}
    where = run(python, "-c", "import mlx_transformer; print(mlx_transformer.__file__)", cwd=tmp_path)
    assert Path(where.strip()).parent == site / "mlx_transformer"
    assert "generate" in run(python.with_name("mlx-transformer"), "--help", cwd=tmp_path)
    for folder in (tmp_path, checkout):
        assert "generate" in run(python, "-m", "mlx_transformer", "--help", cwd=folder)
    assert "test_packaging.py" in run(python, "-m", "pytest", "--collect-only", "-q", cwd=checkout)


@pytest.mark.packaging
@pytest.mark.slow
def test_the_python_of_all_pages_passes_pyright(python, tmp_path):
    pytest.importorskip("basedpyright", reason="basedpyright is not installed: pip install '.[dev]'")
    expected = write_python(tmp_path)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", str(python), "--outputjson"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    errors = [entry for entry in json.loads(result.stdout)["generalDiagnostics"] if entry["severity"] == "error"]
    lines = {f"{Path(entry['file']).name}:{entry['range']['start']['line'] + 1}" for entry in errors}
    assert lines == expected, "\n".join(f"{Path(entry['file']).name}: {entry['message']}" for entry in errors)


@pytest.mark.parametrize(
    "arguments", [None, ["--help"], *([name, "--help"] for name in ("generate", "train", "evaluate", "info"))]
)
@pytest.mark.slow
def test_import_and_help_do_not_load_mlx(arguments):
    command = f"main({arguments}, standalone_mode=False)" if arguments else "None"
    code = f"import sys, mlx_transformer; from mlx_transformer.cli import main; {command}; print('mlx' in sys.modules)"
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        output = run(sys.executable, "-c", code, cwd=ROOT)
        seconds.append(time.perf_counter() - start)
        assert output.splitlines()[-1] == "False"
    assert min(seconds) < 0.3


def test_every_dependency_has_a_lower_bound():
    # `.ci/run` installs exactly these versions and tests with them; a dependency without a bound would go untested.
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *extras["train"]):
        assert ">=" in requirement
