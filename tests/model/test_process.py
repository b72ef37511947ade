"""Forked processes, in which MLX cannot run."""

import subprocess
import sys

import pytest
from support.paths import ROOT

SCRIPT = """
import os, sys
sys.path.insert(0, "tests")
import mlx_transformer as mt
import mlx.core as mx
from support.tiny_models import config, random_model
if sys.argv[1] == "used":
    model, tokenizer = mt.load()
process = os.fork()
if process:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
{call}
os._exit(0)
"""
CALLS = {
    "plain": "model(mx.array([[3]]), mx.array([[2]]))",
    "compiled": "model.compiled(lambda model, array: array)(mx.array([3]))",
    "new": "random_model(config())",
    "load": "mt.load()",
    "generate": "mt.generate(model, tokenizer, 'Hello')",
    "stream": "list(mt.stream_generate(model, tokenizer, 'Hello'))",
    "score": "list(mt.score(model, tokenizer, ['Hello'], ['Bonjour']))",
    "attention": "mt.attention_ids(model, mx.array([[3]]), mx.array([[2]]))",
}


def run(state, call):
    script = SCRIPT.format(call=CALLS[call])
    return subprocess.run(
        [sys.executable, "-c", script, state], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("call", CALLS)
def test_models_refuse_to_run_after_a_fork(call):
    result = run("used", call)
    assert result.returncode
    assert "MLX does not work in a process that was forked after a model was made" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_fork_before_the_first_model_is_harmless():
    result = run("unused", "new")
    assert result.returncode == 0, result.stderr
