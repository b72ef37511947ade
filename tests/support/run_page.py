"""Run the code blocks of a page in order, and print as JSON what each of them prints.

Blocks are read from standard input, a JSON list of [language, line number, code]: Python runs in one namespace for the
page, everything else in a shell. The first block that raises an exception ends the page.
"""

import contextlib
import io
import json
import subprocess
import sys
import traceback

import mlx_transformer  # noqa: F401 (before MLX, so that MLX uses OpenBLAS)


def run_python(code: str, line: int, page: str, namespace: dict) -> dict:
    """Run Python code; a traceback names the page and the line."""
    printed, status, error = io.StringIO(), 0, ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile("\n" * line + code, page, "exec"), namespace)
        except Exception:
            status, error = 1, traceback.format_exc()
    return {"status": status, "stdout": printed.getvalue(), "stderr": error}


def run_shell(code: str) -> dict:
    """Run shell commands up to the first that fails."""
    result = subprocess.run(["bash", "-euc", code], capture_output=True, text=True)
    return {"status": result.returncode, "stdout": result.stdout, "stderr": result.stderr}


def main() -> None:
    """Run a page."""
    page, blocks = sys.argv[1], json.load(sys.stdin)
    namespace: dict = {"__name__": "__main__"}
    results = []
    for language, line, code in blocks:
        results.append(run_python(code, line, page, namespace) if language == "python" else run_shell(code))
        if language == "python" and results[-1]["status"]:
            break
    print(json.dumps(results))


main()
