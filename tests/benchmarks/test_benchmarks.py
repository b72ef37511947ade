"""The arithmetic of the benchmarks: bytes, kernels, counts, goals, and the one file of the command for Macs."""

import json
import platform
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, stack

from benchmarks import generate, kernels, mac, measure, peers, random_weights, roofline, shapes, trained_model
from benchmarks.measure import Goal, Sample
from benchmarks.roofline import Format, Workload
from benchmarks.train import Options
from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.decoding import beam_search
from mlx_transformer.model.quantization import quantize_weights

WIDE = config(dims=64, encoder=stack(mlp_dims=64), decoder=stack(mlp_dims=128, num_layers=2), output_bias=True)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Nothing is timed here in earnest, and on a CPU every new trace costs seconds."""
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0)
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("name", SETTINGS)
def test_bytes_of_weights_are_those_of_the_arrays(name):
    model = random_model(SETTINGS[name])
    found = roofline.step_bytes(model.config, roofline.FORMATS["float32"], Workload())
    assert roofline.loaded_bytes(model) == {part: found[part] for part in ("layers", "output")}


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_bytes_of_quantised_weights_are_those_of_the_arrays(bits, gated):
    model = random_model(replace(WIDE, gated_mlp=gated))
    model.set_dtype(mx.float16)
    if bits:
        quantize_weights(model, QuantizationConfig(bits))
    found = roofline.step_bytes(model.config, Format(2, bits), Workload())
    assert roofline.loaded_bytes(model) == {part: found[part] for part in ("layers", "output")}


@pytest.mark.parametrize("name", ["post_norm", "unequal_stacks"])
def test_bytes_of_keys_and_values_are_those_of_the_arrays(name):
    model, workload = random_model(SETTINGS[name]), Workload(batch=3, beams=2, source_length=7, length=16)
    found = roofline.step_bytes(model.config, roofline.FORMATS["float32"], workload)
    memory = model.encode(padded(random_sources(model.config, [7, 7, 7]), model.config))
    assert found["cross keys and values"] == sum(array.nbytes for array in memory.key_values)
    cache = model.new_cache(workload.batch * workload.beams, workload.length)
    assert found["self keys and values"] == sum(array.nbytes for array in cache.layers)


def test_bound_of_a_bandwidth():
    assert roofline.max_tokens_per_second(100, 500_000_000, batch=8) == 1600


def test_kernels_of_a_known_graph_without_its_views():
    a, b, w = mx.ones((2, 3)), mx.ones((3, 4)), mx.ones(8)
    mx.eval(a, b, w)
    product = (a @ b).T.reshape(8)
    assert kernels.count_kernels([mx.exp(product[1:]).sum(), product * w]) == Counter(
        Matmul=1, Exp=1, Sum=1, Multiply=1
    )


def test_as_on_a_gpu_norms_and_attention_are_one_kernel_each():
    norm, q, mask = nn.LayerNorm(4), mx.ones((1, 1, 2, 4)), mx.array([[0.0, 1.0], [0.0, 2.0]])
    mx.eval(norm.parameters(), q, mask)
    originals = dict(vars(mx.fast))

    def build():
        return mx.fast.scaled_dot_product_attention(norm(q), q, q, scale=1.0, mask=mx.exp(mask))

    with kernels.simulate_gpu_kernels():
        found = kernels.count_kernels(build())
    assert found.pop("Exp") == 1  # what makes the mask is not lost
    assert found.total() == 2
    assert dict(vars(mx.fast)) == originals


def test_kernels_by_layer():
    whole, layer, outside = kernels.split_by_layer(lambda layers: Counter(Matmul=3 * layers + 1, Sum=2), layers=6)
    assert (whole, layer, outside) == (Counter(Matmul=19, Sum=2), Counter(Matmul=3), Counter(Matmul=1, Sum=2))


@pytest.mark.parametrize("beams", [1, 3])
def test_kernels_of_a_step_are_those_of_one_step(beams):
    counts = []
    for layers in (1, 2, 3):
        model = random_model(config(decoder=stack(num_layers=layers)))
        source = np.array(padded(random_sources(model.config, [5]), model.config))
        counts.append(kernels.count_step_kernels(model, source, beams, (model.config.eos_id,)))
    assert counts[1] - counts[0] == counts[2] - counts[1]
    # Queries, keys and values, output; queries, output; up, down. None is hidden in the graph of another step.
    assert (counts[1] - counts[0])["AddMM"] == 7


def test_reads_and_steps_are_counted(monkeypatch):
    monkeypatch.setattr(beam_search, "to_host", lambda *arrays: arrays, raising=False)
    with kernels.count_host_reads() as found:
        beam_search.to_host(mx.array(1))
        mx.async_eval(mx.array(1))
        mx.async_eval(mx.array(1))
    assert found == Counter(reads=1, steps=2)
    monkeypatch.delattr(beam_search, "to_host")
    with kernels.count_host_reads() as found:
        assert found is None


def test_traces_are_counted_for_each_new_shape():
    mx.enable_compile()
    with kernels.count_traces() as found:
        double = mx.compile(lambda x: 2 * x)
        for length in (2, 3, 2, 3):
            double(mx.ones(length))
    assert found == Counter({"<lambda>": 2})


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[1, 2, 3, 4] * 2, [5, 6, 5, 5] * 2], True),
        ([[1] * 16, [2] * 16], False),
        ([[*range(8)], [*range(1, 9)]], False),
        ([[1, 2, 3, 4] * 2] * 2, False),
        ([[1, 2, 3, 4] * 2], True),
    ],
)
def test_outputs_that_repeat_differ_always_or_are_all_alike_prove_nothing(outputs, expected):
    assert shapes.outputs_vary(outputs) == expected


@pytest.mark.parametrize("name", ["marian-tiny", "t5-tiny"])
def test_weights_make_outputs_vary(name, tmp_path):
    shape = shapes.SHAPES[name]
    shapes.write_checkpoint(shape, tmp_path)
    outputs = peers.Ours(shape, tmp_path).generate(shapes.random_sources(shape, 8, 24), 1, 32)
    assert shapes.outputs_vary(outputs), shapes.distinct_token_counts(outputs)
    assert {len(ids) for ids in outputs} == {32}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_padding_and_end_token_never_win(name):
    shape = replace(shapes.SHAPES[name], dims=8, num_heads=2, mlp_dims=8)
    (table,) = (array for array in shapes.hf_tensors(shape).values() if array.shape == (shape.vocab_size, shape.dims))
    silent = np.flatnonzero(~table.any(axis=1)).tolist()
    assert silent == sorted((shape.pad_id, shape.eos_id))
    assert not set(silent) & set(shapes.random_sources(shape, 200, 50).flatten().tolist())


@pytest.mark.torch
@pytest.mark.parametrize("name", ["marian-tiny", "t5-tiny"])
def test_transformers_generates_the_same(name, tmp_path):
    pytest.importorskip("transformers")
    shape = shapes.SHAPES[name]
    shapes.write_checkpoint(shape, tmp_path)
    source = shapes.random_sources(shape, 2, 24)
    theirs = peers.Transformers(shape, tmp_path, "float32", "cpu", threads=1)
    for beams in (1, 4):
        assert peers.Ours(shape, tmp_path).generate(source, beams, 12) == theirs.generate(source, beams, 12)
    assert sorted(theirs.token_timestamps(source[:1], 5)) == [1, 2, 3, 4, 5]


def test_growth_is_measured_at_the_edges_of_its_windows(tmp_path):
    shape = shapes.SHAPES["t5-tiny"]
    shapes.write_checkpoint(shape, tmp_path)
    timestamps = peers.Ours(shape, tmp_path).token_timestamps(shapes.random_sources(shape, 1, 5), 40)
    assert [*timestamps] == [8, 24, 40] and sorted(timestamps.values()) == [*timestamps.values()]
    assert {*random_weights.NEAR_WINDOW, *random_weights.FAR_WINDOW} <= {
        *range(8, random_weights.FAR_WINDOW[1] + 1, 16)
    }
    assert random_weights.ms_per_token({8: 1.0, 24: 1.8}, (8, 24)) == pytest.approx(50)


def test_disturbed_calls_are_discarded_while_enough_remain():
    quiet, loud = Sample(1.0, 0.02), Sample(9.0, 0.5)
    assert measure.summarise([quiet, loud, quiet, loud]) == (1.0, 1.0, 1.0, 2, 2)
    assert measure.summarise([quiet, loud, loud]) == (9.0, 1.0, 9.0, 3, 0)
    assert measure.summarise([Sample(2.0, None)]) == (2.0, 2.0, 2.0, 1, 0)


def test_disturbed_calls_are_made_again(monkeypatch):
    shares = iter([0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(measure, "time_call", lambda call: (call(), Sample(1.0, next(shares))))
    assert len(measure.interleave_calls({"call": lambda: None}, repeats=3)["call"]) == 4


def test_what_others_take_is_measured(monkeypatch):
    # (busy, all) seconds of the machine, and ours: of 4 s of two cores 3 were busy, 2 by us.
    machine, mine = iter([(10.0, 100.0), (13.0, 104.0)]), iter([5.0, 7.0])
    monkeypatch.setattr(measure, "system_cpu_seconds", lambda: next(machine))
    monkeypatch.setattr(measure, "process_cpu_seconds", lambda: next(mine))
    result, sample = measure.time_call(lambda: "done")
    assert (result, sample.other_load) == ("done", 0.25)


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        (Goal("more", 1.2, 1.15, 1.4), ("yes", "no")),
        (Goal("less", 0.5, 0.6, 0.4, lower=True), ("yes", "no")),
        (Goal("none", None, 1, 1), ("not measured", "not measured")),
        (Goal("aim", 1.1, None, 1), ("-", "yes")),
    ],
)
def test_goals(goal, reached):
    assert (goal.reached(goal.goal), goal.reached(goal.aim)) == reached
    assert measure.goals_table([goal]).splitlines()[2].split(" | ")[3] == reached[0]


class Fake:
    """A system that says what it is told to, after a while."""

    def __init__(self, name, exact, token):
        self.name, self.exact, self.token = name, exact, token

    def supports(self, beams, batch):
        return True

    def generate(self, source, beams, tokens):
        return [[self.token] * tokens for _ in source]


def test_a_time_counts_only_with_the_tokens_of_transformers(monkeypatch, tmp_path):
    systems = [Fake("mlx_transformer", True, 3), Fake("transformers", True, 3)]
    systems += [Fake("CTranslate2 float32", True, 4), Fake("CTranslate2 int8", False, 4)]
    monkeypatch.setattr(random_weights.Options, "available_systems", lambda self, shape: (systems, []))
    seconds = {"mlx_transformer": 1.0, "transformers": 2.0, "CTranslate2 float32": 0.1, "CTranslate2 int8": 0.5}
    monkeypatch.setattr(
        random_weights, "interleave_calls", lambda calls, n: {who: [Sample(seconds[who], 0.0)] for who in calls}
    )
    options = random_weights.Options(tmp_path, None, "float32", "cpu", 1, 1, [(4, 8)], tokens=5)
    found = random_weights.throughput("marian-tiny", options)
    rows = {row["system"]: row for row in found.data}
    assert {who: row["counts"] for who, row in rows.items()} == dict(
        zip(seconds, [True, True, False, True], strict=True)
    )
    assert rows["transformers"]["ours_over_it"] == 2 and rows["CTranslate2 int8"]["ours_over_it"] == 0.5
    assert rows["CTranslate2 float32"]["same_tokens"] == 0
    assert rows["mlx_transformer"]["tokens_per_second"] == 40
    assert [(goal.figure, goal.reached(goal.goal)) for goal in found.goals] == [(2, "yes"), (None, "-")]
    assert "DO NOT VARY" in found.text


def test_agreement_is_the_share_of_positions():
    assert random_weights.agreement([[1, 2], [3, 4]], [[1, 2], [4, 4]]) == 0.75


def test_files_of_mixed_lengths_are_the_same_for_a_seed():
    sentences = trained_model.simple_sentences()
    assert len(set(sentences)) == len(sentences) > 100
    first, again, other = (trained_model.mixed_lines(sentences, 20, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({line.count(".") for line in first}) > 2


def test_batches_are_numbers():
    assert generate.parse_integers(None, None, "1,16") == [1, 16]
    done = CliRunner().invoke(generate.main, ["--batches", "1,x"])
    assert done.exit_code == 2 and "comma-separated integers" in done.output


def test_outcome_of_the_tests():
    text = (
        "F.\n= short test summary info =\nFAILED tests/test_a.py::test_b[c] - assert 1\n1 failed, 2 passed in 3.21s\n"
    )
    assert mac.parse_test_output(text) == {
        "result": "1 failed, 2 passed in 3.21s",
        "failed": ["tests/test_a.py::test_b[c]"],
    }


def test_free_text_is_made_anonymous(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "annas-mac.local")
    text = mac.anonymise(f"OSError: {Path('/', 'Users', 'anna', 'x y', 'model.bin')} on annas-mac.local")
    assert text == "OSError: <path> on <name>"
    assert mac.anonymise("tests/test_a.py: 3 / 4") == "tests/test_a.py: 3 / 4"


def test_the_file_for_macs(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "a-name-of-a-machine")
    tiny = {"layers": 1, "dims": 16, "heads": 2, "mlp": 16, "vocab": 20, "rows": 2, "length": 4}
    monkeypatch.setattr(mac, "Options", partial(Options, **tiny))
    file = tmp_path / "mac.json"
    flags = ["--no-tests", "--no-peers", "--no-growth", "--no-bundled", "--device", pytestconfig.getoption("--device")]
    sizes = ["--shape", "t5-tiny", "--numbers", "float32", "--batches", "1,2", "--repeats", "1", "--tokens", "4"]
    done = CliRunner().invoke(mac.main, [*flags, *sizes, "--output", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = file.read_text()
    for private in (platform.node(), str(tmp_path), str(Path.home()), tempfile.gettempdir(), str(mac.ROOT)):
        assert private not in text
    found = json.loads(text)
    assert all(seconds > 0 for seconds in found["training"]["float32"].values())
    measured = found["shapes"]["t5-tiny"]
    assert {(row["beams"], row["batch"]) for row in measured["speed"]} == {(1, 1), (1, 2), (4, 1), (4, 2)}
    assert all(row["tokens_per_second"] > 0 and row["peak_mb"] > 0 for row in measured["speed"])
    assert measured["same_tokens_as_on_the_cpu"] == {"greedy, batch 4": 1, "beam 4, batch 4": 1}
    counted = measured["kernels"]["beam 4, as on a GPU"]
    assert counted["total"] == sum(number for name, number in counted.items() if name != "total") > 0
    held = measured["held_bytes"]["float32"]
    assert held == {part: measured["step_bytes"]["float32"][part] for part in held}
    assert (found["machine"]["note"] is None) == (platform.system() == "Darwin" and mx.default_device() == mx.gpu)


def test_a_setting_that_fails_does_not_lose_the_others():
    def fail():
        raise ValueError(f"no model at {Path('/', 'some', 'folder')}")

    assert mac.try_measurement(fail) == {"error": "ValueError: no model at <path>"}
    assert "no model" in generate.try_part(fail).text


def test_mlx_examples_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="--mlx-examples must be"):
        peers.load_mlx_examples_model(tmp_path, tmp_path)


def test_all_parameters_of_a_step_are_counted_once():
    model = random_model(SETTINGS["unequal_stacks"])
    held = roofline.loaded_bytes(model)
    unread = [
        array.nbytes
        for name, array in tree_flatten(model.parameters())
        if name.startswith(("encoder", "source_embedding", "decoder.positions"))
        or "cross_attention.key" in name
        or "cross_attention.value" in name
    ]
    whole = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert sum(held.values()) + sum(unread) == whole
