"""Compiled functions: failures, threads, copies and the lifetime of models."""

import copy
import os
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.paths import ROOT
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, random_targets

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.inference.attention_weights import attention_ids
from mlx_transformer.inference.scoring import score_ids
from mlx_transformer.model import compilation

CONFIG = config()
SOURCE, TARGET = padded(random_sources(CONFIG, [5]), CONFIG), random_targets(CONFIG, 1, 4)


def forward(model, source, target):
    return model(source, target)


def add(model, number, array):
    return array + number


@pytest.mark.parametrize(
    "refused",
    [
        lambda model: generate_ids(model, mx.full((1, 41), 3), SearchConfig(max_tokens=3)),
        lambda model: score_ids(model, mx.full((1, 5), 3), mx.full((1, 50), 3)),
    ],
    ids=["source", "target"],
)
def test_model_is_usable_after_a_rejected_input(refused):
    model = random_model(CONFIG)
    before = mx.array(model(SOURCE, TARGET))
    with pytest.raises(ValueError, match="at most 40 tokens long"):
        refused(model)
    assert mx.array_equal(model(SOURCE, TARGET), before)


def test_tracing_never_puts_placeholders_into_the_model():
    model = random_model(CONFIG)
    weights = [id(array) for _, array in tree_flatten(model.parameters())]
    seen = []

    def spy(traced, array):
        seen.append([id(array) for _, array in tree_flatten(model.parameters())])
        return traced.source_embedding(array)

    assert mx.array_equal(model.compiled(spy)(SOURCE), model.source_embedding(SOURCE))
    assert seen == [weights]


def test_compiled_functions_are_kept_up_to_a_limit():
    model, array = random_model(CONFIG), mx.array([1.0])
    traced = []

    def count(model, number, array):
        traced.append(number)
        return array + number

    numbers = [*range(compilation.MAX_COMPILED), 0, compilation.MAX_COMPILED]
    for number in [*numbers, 0, 1]:
        assert model.compiled(count, number)(array).item() == 1 + number
    # Only the least recently used was dropped.
    assert traced == [*range(compilation.MAX_COMPILED + 1), 1]


def test_dropped_functions_leave_no_traces_in_other_threads():
    """MLX drops the traces of the last caller's thread only; a new function may get the address of a dropped one."""
    model, array = random_model(CONFIG), mx.array([1.0])
    with ThreadPoolExecutor(1) as pool:
        for number in range(4 * compilation.MAX_COMPILED):
            function = model.compiled(add, number)
            results = [pool.submit(lambda f=function: f(array).item()).result(), function(array).item()]
            assert results == [1 + number] * 2


def test_used_model_is_freed_when_its_last_reference_is_deleted():
    model = random_model(CONFIG)
    generate_ids(model, SOURCE, SearchConfig(beam_size=2, max_tokens=2))
    score_ids(model, SOURCE, TARGET)
    attention_ids(model, SOURCE, TARGET)
    reference = weakref.ref(model)
    del model
    assert reference() is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", SETTINGS)
def test_copies_of_a_used_model_give_the_same_logits(name, copied):
    model = random_model(SETTINGS[name])
    source, target = padded(random_sources(model.config, [5, 3]), model.config), random_targets(model.config, 2, 4)
    expected = model.compiled(forward)(source, target)
    clone = copied(model)
    config = model.config
    del model  # a copy does not need the original
    assert mx.array_equal(clone.compiled(forward)(source, target), expected)
    assert (clone.config, clone.training) == (config, False)


def test_deep_copy_has_weights_of_its_own():
    model = random_model(CONFIG)
    expected = model(SOURCE, TARGET)
    clone = copy.deepcopy(model)
    clone.source_embedding.weight *= 2
    assert mx.array_equal(model(SOURCE, TARGET), expected)
    assert not mx.allclose(clone(SOURCE, TARGET), expected, atol=0.1)


KERNELS_SCRIPT = """
import logging, os, sys
logging.basicConfig()
before = dict(os.environ)
sys.path.insert(0, "tests")
from support.tiny_models import config, padded, random_model, random_sources, random_targets
for model in [random_model(config()) for _ in range(2)]:
    model(padded(random_sources(model.config, [5]), model.config), random_targets(model.config, 1, 4)).tolist()
assert os.environ == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac's temporary folder is private")
def test_kernels_of_a_folder_that_others_can_write_to_are_never_loaded(tmp_path):
    kernels = tmp_path / "mlx"
    kernels.mkdir()
    kernels.chmod(0o777)
    environment = {name: value for name, value in os.environ.items() if name != "MLX_DISABLE_COMPILE"}
    result = subprocess.run(
        [sys.executable, "-c", KERNELS_SCRIPT],
        cwd=ROOT,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and list(kernels.iterdir()) == []
    assert result.stderr == (
        f"WARNING:mlx_transformer.model.compilation:Functions are not compiled, which is slower, because {kernels} "
        "belongs to another user, or other users can write to it: set TMPDIR to a folder to which only you can write "
        "before the first model is made.\n"
    )


def test_compilation_errors_are_described_in_one_line(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/full")
    full = """[Compile::eval_cpu] Failed to compile function A: Failed to execute command with return code 1: "g++"
    unary_ops.h:162:25: warning: dereferencing type-punned pointer
    /usr/bin/ld: final link failed: No space left on device
    collect2: error: ld returned 1 exit status"""
    line = compilation.describe_compilation_error(RuntimeError(full))
    assert line.startswith("MLX cannot compile functions in /full/mlx: ") and "\n" not in line
    assert "final link failed: No space left on device. Free disk space, set TMPDIR to another folder" in line
    damaged = "Could not load C++ shared library /full/mlx/0.1/cpu/libA.so: file too short"
    assert "libA.so: file too short. " in compilation.describe_compilation_error(RuntimeError(damaged))
    assert compilation.describe_compilation_error(RuntimeError("[matmul] Shapes differ")) is None
