"""Output files, devices and pipes."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command_line import error_line


def start_and_wait(start, out, line=b"one\n"):
    """Start `generate`; return the process and the path of its partial output when that has one line."""
    before = set(out.parent.glob("*.partial"))
    process = start("generate", "-o", str(out))
    process.stdin.write(line)
    process.stdin.flush()
    while process.poll() is None:
        for path in set(out.parent.glob("*.partial")) - before:
            if path.read_text():
                return process, path
        time.sleep(0.01)
    raise AssertionError(process.communicate())


class TestOutput:
    """--output: nothing is lost, whatever happens."""

    @pytest.fixture
    def out(self, tmp_path):
        (tmp_path / "out").write_text("precious")
        return tmp_path / "out"

    def test_failed_run_keeps_the_old_file_and_names_the_partial_output(self, echo, out):
        result = echo("generate", "-o", out, stdin=b"one\nRuntimeError: out of memory\n", status=1)
        (partial,) = out.parent.glob("out.*.partial")
        assert f"The results so far are in {partial}." in error_line(result)
        assert out.read_text() == "precious" and partial.read_text() == "ONE\n"

    @pytest.mark.parametrize("name", ["out.gz", "OUT.GZ"])
    def test_a_name_that_ends_in_gz_is_compressed(self, echo, out, name):
        path = out.with_name(name)
        assert echo("generate", "-o", path, stdin=b"one\ntwo\n").stdout == ""
        assert gzip.decompress(path.read_bytes()) == b"ONE\nTWO\n"
        echo("generate", "-o", path, stdin=b"three\nRuntimeError: out of memory\n", status=1)
        (partial,) = out.parent.glob(f"{name}.*.partial")
        assert (
            gzip.decompress(path.read_bytes()) == b"ONE\nTWO\n" and gzip.decompress(partial.read_bytes()) == b"THREE\n"
        )

    def test_failed_run_without_results_leaves_nothing(self, echo, out):
        result = echo("generate", "-o", out, stdin=b"RuntimeError: out of memory\n", status=1)
        assert "results so far" not in error_line(result)
        assert out.read_text() == "precious" and os.listdir(out.parent) == ["out"]

    def test_results_are_kept_if_the_output_has_become_a_folder(self, start, out):
        process, partial = start_and_wait(start, out)
        out.unlink()
        out.mkdir()
        message = process.communicate()[1].decode()
        assert f"The results so far are in {partial}." in message and process.returncode == 1
        assert partial.read_text() == "ONE\n"

    def test_partial_results_are_visible_and_kept_at_ctrl_c(self, start, out):
        process, partial = start_and_wait(start, out)
        process.send_signal(signal.SIGINT)
        message = f"Interrupted. The results so far are in {partial}.\n"
        assert process.communicate()[1].decode() == message and process.returncode == 130
        assert out.read_text() == "precious" and partial.read_text() == "ONE\n"

    def test_two_runs_at_once_do_not_mix(self, start, out):
        """The first output is complete when its run ends, and so is the second one, which replaces it."""
        first, _ = start_and_wait(start, out)
        second, _ = start_and_wait(start, out, b"two\n")
        assert first.communicate(b"three\n") == (b"", b"") and out.read_text() == "ONE\nTHREE\n"
        assert second.communicate() == (b"", b"") and out.read_text() == "TWO\n"
        assert (first.returncode, second.returncode) == (0, 0) and os.listdir(out.parent) == ["out"]

    def test_files_and_links_of_the_user_are_never_written(self, echo, tmp_path):
        (tmp_path / "mine").write_text("mine")
        (tmp_path / "out.partial").symlink_to("mine")
        echo("generate", "-o", tmp_path / "out", "one")
        assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "out.partial").is_symlink()
        assert (tmp_path / "out").read_text() == "ONE\n"

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o666])
    def test_the_partial_output_is_no_more_readable_than_the_output(self, start, out, mode):
        out.chmod(mode)
        process, partial = start_and_wait(start, out)
        assert partial.stat().st_mode & 0o777 & ~mode == 0
        process.communicate()
        assert out.stat().st_mode & 0o777 == mode

    def test_successful_run_replaces_the_file_and_keeps_its_mode(self, echo, out):
        out.chmod(0o640)
        echo("generate", "-o", out, "one")
        assert out.read_text() == "ONE\n" and out.stat().st_mode & 0o777 == 0o640
        assert os.listdir(out.parent) == ["out"]

    def test_a_link_stays_a_link(self, echo, out):
        link = out.with_name("link")
        link.symlink_to("out")
        echo("generate", "-o", link, "one")
        assert link.is_symlink() and out.read_text() == "ONE\n"

    def test_devices_are_written_to_directly(self, start, tmp_path):
        assert start("generate", "one", "-o", "/dev/stdout").communicate() == (b"ONE\n", b"")
        assert start("generate", "one", "-o", "/dev/null").communicate() == (b"", b"")
        assert not list(Path("/dev").glob("*.partial"))
        with (tmp_path / "log").open("ab") as log:
            log.write(b"before\n")
            log.flush()
            start("generate", "one", "-o", "/dev/stdout", stdout=log).wait()
        assert (tmp_path / "log").read_text() == "before\nONE\n" and os.listdir(tmp_path) == ["log"]

    def test_named_pipes_of_input_and_output(self, start, tmp_path):
        for name in ("in", "out"):
            os.mkfifo(tmp_path / name)
        results = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
        writer = subprocess.Popen(["sh", "-c", "echo one > in"], cwd=tmp_path)
        process = start("generate", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"))
        assert process.wait() == 0 and os.read(results, 100) == b"ONE\n"
        os.close(results)
        writer.kill()
        writer.wait()


class TestPipes:
    @pytest.mark.parametrize("options", [(), ("--split-sentences",)], ids=["whole", "split"])
    def test_each_line_is_processed_as_it_arrives(self, start, options):
        process = start("generate", *options)
        for line in (b"one\n", b"\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line.upper()
        assert process.communicate()[0] == b"" and process.returncode == 0

    def test_a_closed_pipe_ends_quietly(self, start):
        endless = "import sys\ntry:\n while True: print('one')\nexcept OSError: sys.stdout = None"
        producer = subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process = start("generate", stdin=producer.stdout)
        producer.stdout.close()
        assert process.stdout.readline() == b"ONE\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
        process.stderr.close()
        producer.kill()
        producer.wait()

    @pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "after a line"])
    def test_ctrl_c_ends_cleanly(self, start, waiting):
        process = start("generate")
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ONE\n"
        if not waiting:
            process.stdin.write(b"two")
            process.stdin.flush()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
        assert (output, errors, process.returncode) == (b"", b"Interrupted.\n", 130)

    def test_any_locale(self, start):
        process = start("generate", env={"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"})
        assert process.communicate("ŝ\n".encode())[0] == "Ŝ\n".encode()
