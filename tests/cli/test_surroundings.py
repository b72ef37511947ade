"""Closed standard streams, missing temporary folders, and file names instead of texts."""

import itertools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile

import pytest
from support.command_line import ECHO, error_line
from support.paths import ROOT

RUN = ROOT / "tests" / "support" / "runs" / "version_0.1.0"
STREAMS = ("stdin", "stdout", "stderr")
COMBINATIONS = [closed for count in range(4) for closed in itertools.combinations(STREAMS, count)]
REAL = [sys.executable, "-m", "mlx_transformer"]
# Arguments, and the streams that the command needs.
COMMANDS = {
    "generate text": ("generate Hello", ["stdout"]),
    "generate to a file": ("generate Hello --output out.txt", []),
    "generate from standard input": ("generate --output out.txt", ["stdin"]),
    "generate a stream": ("generate --stream", STREAMS[:2]),
    "score": ("score", STREAMS[:2]),
    "score files": ("score --input pairs.tsv --output out.txt", []),
    "evaluate": ("evaluate pairs.tsv", ["stdout"]),
    "help": ("--help", ["stdout"]),
    "help of a command": ("convert --help", ["stdout"]),
    "version": ("--version", ["stdout"]),
}
# Commands that need more than the stand-in for a model.
REAL_COMMANDS = {
    "generate": ("generate --model run/best Hello", ["stdout"]),
    "info": ("info run/best", ["stdout"]),
    "plot": ("plot run", ["stdout"]),
    "attention": ("attention --model run/best --output attention.png Hello", ["stdout"]),
    "convert": ("convert t5 model --force", []),
    "train": (
        "train --train dates --valid dates --output new --steps 1 --valid-every 1 --preset tiny --batch-tokens 256 "
        "--bleu-sentences 2 --num-layers 1 --dims 16 --mlp-dims 16 --num-heads 1 --vocab-size 270",
        ["stdout"],
    ),
}


def run_closed(command, arguments, closed, folder):
    """Run a command with some standard streams closed."""
    (folder / "pairs.tsv").write_text("one\tONE\ntwo\tTWO\n")
    shell = 'exec "$@"' + "".join(f" {STREAMS.index(name)}>&-" for name in closed)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", shell, "sh", *command, *arguments.split()],
        input=b"one\tONE\n",
        capture_output=True,
        cwd=folder,
        env=environment,
    )


def check(result, needed, closed):
    """A command fails with one line if a stream that it needs is closed, and succeeds otherwise."""
    lines = result.stderr.decode().splitlines()
    missing = [name for name in closed if name in needed]
    assert result.returncode == (1 if missing else 0), (closed, lines)
    if "stderr" in closed or not missing:
        assert not any("Traceback" in line or "Error" in line for line in lines), closed
    else:
        stream = {"stdin": "Standard input", "stdout": "Standard output"}
        assert [line for line in lines if "Error" in line] == lines[-1:], lines  # after lines about progress
        assert any(lines[-1].startswith(f"Error: {stream[name]} is closed: ") for name in missing), lines


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("generate text", ("stdout",)),
        ("generate from standard input", ("stdin",)),
        ("generate to a file", STREAMS),
    ],
)
def test_closed_streams(tmp_path, name, closed):
    arguments, needed = COMMANDS[name]
    check(run_closed(ECHO, arguments, closed, tmp_path), needed, closed)
    if not needed:
        assert (tmp_path / "out.txt").read_text() == "HELLO\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_combination_of_closed_streams(tmp_path, name):
    arguments, needed = COMMANDS[name]
    for closed in COMBINATIONS:
        check(run_closed(ECHO, arguments, closed, tmp_path), needed, closed)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_COMMANDS)
def test_every_combination_of_closed_streams_with_a_model(tmp_path, name):
    shutil.copytree(RUN, tmp_path / "run")
    if name == "convert":
        pytest.importorskip("transformers")
        from support.tiny_checkpoints import t5

        (tmp_path / "t5").mkdir()
        t5(tmp_path / "t5")
    arguments, needed = REAL_COMMANDS[name]
    for closed in COMBINATIONS:
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        check(run_closed(REAL, arguments, closed, tmp_path), needed, closed)


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path):
    """What the system library writes to standard error must not end in an output file."""
    program = "from mlx_transformer.cli.streams import open_closed_streams as f; f(); print(open('x', 'w').fileno())"
    result = subprocess.run(
        ["sh", "-c", f'exec {sys.executable} -c "{program}" <&- 2>&-'],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert int(result.stdout) > 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_help_to_a_full_disk(start):
    with open("/dev/full", "wb") as full:
        process = start("--help", stdin=subprocess.DEVNULL, stdout=full)
        assert process.communicate()[1] == b"Error: No space left on device.\n" and process.returncode == 1


class TestTemporaryFolder:
    @pytest.fixture(autouse=True)
    def usable(self, monkeypatch, tmp_path):
        """A folder that Python chooses if TMPDIR cannot be used."""
        monkeypatch.setenv("TEMP", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield tmp_path
        tempfile.tempdir = None

    def test_a_missing_folder_is_replaced_with_a_warning(self, echo, monkeypatch, usable):
        monkeypatch.setenv("TMPDIR", "/absent")
        result = echo("generate", "one")
        assert result.stdout == "ONE\n"
        assert result.stderr == f"Warning: TMPDIR is /absent, which cannot be written; {usable} is used instead.\n"
        assert os.environ["TMPDIR"] == str(usable)

    def test_a_usable_folder_is_kept(self, echo, monkeypatch, usable):
        monkeypatch.setenv("TMPDIR", f"{usable}/")
        assert echo("generate", "one").stderr == ""
        assert os.environ["TMPDIR"] == str(usable)

    def test_no_usable_folder(self, echo, monkeypatch):
        def fail():
            raise FileNotFoundError(2, "No usable temporary directory found in ['/absent']")

        monkeypatch.setattr(tempfile, "gettempdir", fail)
        assert "No usable temporary directory found" in error_line(echo("generate", "one", status=1))

    @pytest.mark.skipif(sys.platform != "linux", reason="a Mac's temporary folder is private")
    def test_kernels_are_kept_from_other_users(self, echo, monkeypatch, usable):
        """If others can write to the folder of compiled kernels, the command line uses one in the cache."""
        monkeypatch.setenv("TMPDIR", str(usable))
        monkeypatch.setenv("MLX_TRANSFORMER_CACHE", str(usable / "cache"))
        (usable / "mlx").mkdir()
        (usable / "mlx").chmod(0o777)
        assert echo("generate", "one").stderr == ""
        assert os.environ["TMPDIR"] == str(usable / "cache" / "tmp")
        assert (usable / "cache" / "tmp").stat().st_mode & 0o777 == 0o700
        assert tempfile.gettempdir() == str(usable)  # for temporary files that are not run

    def test_a_cache_that_cannot_be_used_is_no_error(self, echo, monkeypatch, usable):
        monkeypatch.setenv("TMPDIR", str(usable))
        monkeypatch.setenv("MLX_TRANSFORMER_CACHE", "/dev/null/cache")
        (usable / "mlx").symlink_to(usable)
        assert echo("generate", "one").stderr == ""
        assert os.environ["TMPDIR"] == str(usable)

    @pytest.mark.slow
    def test_a_disk_that_becomes_full_is_an_error_of_one_line(self, tmp_path):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        command = 'ulimit -f 8; exec "$0" "$@"'
        result = subprocess.run(
            ["sh", "-c", command, *REAL, "generate", "--model", str(RUN / "best"), "Hello"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert f"MLX cannot compile functions in {tmp_path}/mlx: " in error_line(result)
        assert result.returncode == 1 and "Free disk space, set TMPDIR to another folder" in result.stderr

    @pytest.mark.slow
    def test_the_model_runs_with_a_missing_folder(self, tmp_path):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "absent")}
        result = subprocess.run(
            [*REAL, "generate", "--model", str(RUN / "best"), "Hello"], env=environment, capture_output=True
        )
        assert result.returncode == 0 and b"Traceback" not in result.stderr


class TestNoHomeFolder:
    """As in containers that run with a user id of their own."""

    @pytest.fixture(autouse=True)
    def without_home(self, monkeypatch):
        def fail(user):
            raise KeyError(f"uid not found: {user}")

        monkeypatch.setattr(pwd, "getpwuid", fail)
        for name in ("HOME", "XDG_CACHE_HOME", "MLX_TRANSFORMER_CACHE", "HF_HOME"):
            monkeypatch.delenv(name, raising=False)

    def test_commands_without_the_cache_run(self, echo, monkeypatch, tmp_path):
        (tmp_path / "mlx").symlink_to(tmp_path)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert echo("generate", "one").stderr == ""

    def test_the_cache_needs_one(self, echo):
        line = error_line(echo("cache", status=1))
        assert line.endswith("you have no home folder: set MLX_TRANSFORMER_CACHE and HF_HOME.\n")


class TestPasswords:
    @pytest.mark.parametrize(
        ("status", "arguments"),
        [
            (1, ["plot", "{url}"]),
            (1, ["generate", "--input", "{url}"]),
            (1, ["generate", "--output", "{url}", "one"]),
            (1, ["convert", "{url}", "out"]),
            (2, ["convert", "in", "out", "{url}"]),
            (2, ["generate", "--beam-size", "{url}"]),
        ],
    )
    def test_urls_are_shown_without_them(self, echo, tmp_path, monkeypatch, status, arguments):
        monkeypatch.chdir(tmp_path)
        arguments = [argument.format(url="https://user:secret@example.org/a") for argument in arguments]
        result = echo(*arguments, status=status)
        shown = "not a URL" if arguments[0] == "convert" and status == 1 else "***@example.org"
        assert shown in result.stderr and "secret" not in result.stderr


class TestFileNames:
    def test_the_name_of_a_file_as_text_is_reported(self, echo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my english.txt").write_text("one\n")
        result = echo("generate", "my english.txt")
        assert result.stdout == "MY ENGLISH.TXT\n"
        assert result.stderr == (
            "Warning: my english.txt is a file, but only its name is read: to read the file, give --input "
            "'my english.txt'.\n"
        )

    @pytest.mark.parametrize("text", ["english.txt", "", ".", "a" * 5000, "nul\0"])
    def test_other_texts_are_not_reported(self, echo, tmp_path, monkeypatch, text):
        monkeypatch.chdir(tmp_path)
        assert "is a file" not in echo("generate", text).stderr
