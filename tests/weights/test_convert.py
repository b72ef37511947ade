"""Conversion to model folders: content, memory, progress, interruption, quantisation and the command."""

import dataclasses
import hashlib
import json
import shutil

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.bart_files import BART_CONFIG, DIMS, bart_tensors, write_checkpoint
from support.peak_memory import growth
from support.tiny_models import SETTINGS, random_model

import mlx_transformer as mt
from mlx_transformer import cli
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.model import precision
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.storage import safetensors
from mlx_transformer.weights import convert
from mlx_transformer.weights.families import FAMILIES


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "bart", bart_tensors())


def test_converted_folder_equals_the_model_in_memory(source, tmp_path):
    assert mt.convert(source, tmp_path / "ours").family == "bart"
    stored = mt.load_model(tmp_path / "ours")
    direct = mt.load_model(source)
    assert not direct.training
    assert (stored.config, stored.search_defaults) == (direct.config, direct.search_defaults)
    arrays = dict(tree_flatten(stored.parameters()))
    for name, array in tree_flatten(direct.parameters()):
        assert mx.array_equal(array, arrays[name]), name
    assert direct.search_defaults == SearchConfig(beam_size=4, max_tokens=8)
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    ]
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert f"model.safetensors: sha256 {digest}" in (tmp_path / "ours" / "README.md").read_text()


def test_a_checkpoint_and_what_it_is_converted_to_have_the_same_adapters(source, tmp_path):
    """Of a model of the hub, training and generation may use copies in different precisions."""
    model = mt.load_model(source)
    mt.add_adapter(model, mt.AdapterConfig(rank=2, alpha=2.0))
    mt.save_adapter(tmp_path / "adapter", model)
    convert.convert(source, tmp_path / "ours", dtype="float16")
    convert.convert(tmp_path / "ours", tmp_path / "again", dtype="bfloat16")
    other = write_checkpoint(tmp_path / "other", {name: tensor + 1 for name, tensor in bart_tensors().items()})
    for folder in (source, tmp_path / "ours", tmp_path / "again"):
        mt.load_adapter(mt.load_model(folder), tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"is an adapter of {source} .* not of {other} "):
        mt.load_adapter(mt.load_model(other), tmp_path / "adapter")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_of_the_weights(source, tmp_path, dtype):
    convert.convert(source, tmp_path / "ours", dtype=dtype)
    arrays = safetensors.read_arrays(tmp_path / "ours" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {precision.DTYPES[dtype]}
    full = split_projections(mt.load_model(source).parameters())
    assert all(mx.allclose(arrays[name].astype(mx.float32), full[name], atol=0.02) for name in full)
    assert mt.load_model(source, dtype=dtype).dtype == precision.DTYPES[dtype]


def test_half_precision_is_the_default_for_half_precision_checkpoints(tmp_path):
    source = write_checkpoint(
        tmp_path / "half", {name: array.astype(mx.float16) for name, array in bart_tensors().items()}
    )
    convert.convert(source, tmp_path / "ours")
    arrays = safetensors.read_arrays(tmp_path / "ours" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {mx.float16}


@pytest.mark.parametrize("dtype, expected", [("float32", "float16"), ("bfloat16", "bfloat16")])
def test_the_type_of_the_device(tmp_path, monkeypatch, dtype, expected):
    monkeypatch.setattr(precision, "gpu_architecture", lambda: "applegpu_g16s")
    tensors = {name: array.astype(precision.DTYPES[dtype]) for name, array in bart_tensors().items()}
    source = write_checkpoint(tmp_path / "source", tensors)
    convert.convert(source, tmp_path / "ours", dtype="device")
    arrays = safetensors.read_arrays(tmp_path / "ours" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {precision.DTYPES[expected]}
    assert mt.load_model(source).dtype == mt.load_model(tmp_path / "ours").dtype == precision.DTYPES[expected]


def test_the_type_of_the_device_is_never_larger_than_the_stored_one(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "gpu_architecture", lambda: "applegpu_g13g")
    monkeypatch.setitem(FAMILIES["bart"].constants, "overflows_float16", True)
    tensors = {name: array.astype(mx.bfloat16) for name, array in bart_tensors().items()}
    convert.convert(write_checkpoint(tmp_path / "source", tensors), tmp_path / "ours", dtype="device")
    arrays = safetensors.read_arrays(tmp_path / "ours" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {mx.bfloat16}
    assert mt.load_model(tmp_path / "ours").dtype == mx.float32


ROWS = 2**22
POSITIONS = 2**21  # as many as a model of this width may have
EMBEDDING_BYTES = 4 * ROWS * DIMS  # in float32


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Write checkpoints with embeddings of 128 MiB, or half of that: of tokens, and of positions with skipped rows."""
    folder = tmp_path_factory.mktemp("large")
    tokens = {"model.shared.weight": (ROWS, DIMS), "final_logits_bias": (1, ROWS)}
    both = tokens | {f"model.{stack}.embed_positions.weight": (POSITIONS, DIMS) for stack in ("encoder", "decoder")}
    untied = tokens | {"lm_head.weight": (ROWS, DIMS)}
    kinds = {"tokens": (tokens, mx.float32), "untied": (untied, mx.float32), "positions": (both, mx.float32)}
    for name, (shapes, dtype) in (kinds | {"half": (both, mx.float16)}).items():
        tensors = bart_tensors() | {key: mx.zeros(shape) for key, shape in shapes.items()}
        config = BART_CONFIG | ({"max_position_embeddings": POSITIONS - 2} if shapes is both else {})
        write_checkpoint(folder / name, {key: tensors.pop(key).astype(dtype) for key in list(tensors)}, config)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "source, dtype, limit",
    [
        ("tokens", None, 0.7),
        ("untied", None, 0.9),
        ("positions", None, 1.6),
        ("positions", "float16", 1.6),
        ("half", None, 0.8),
    ],
)
@pytest.mark.slow
def test_memory_of_a_conversion_depends_on_the_largest_tensor(large, source, dtype, limit):
    """It is less than the largest tensor if that is stored unchanged."""
    program = f"mt.convert(source, destination, dtype={dtype!r}, force=True)"
    assert growth(program, large / source, large / "ours") < limit * EMBEDDING_BYTES


@pytest.mark.parametrize("source", ["positions", "half"])
@pytest.mark.slow
def test_memory_of_loading_depends_on_the_model_and_the_largest_tensor(large, source):
    largest = EMBEDDING_BYTES // 2 if source == "half" else 0  # in float32 the model uses the tensor itself
    assert growth("model = mt.load_model(source, dtype='float32')", large / source) < 3.4 * EMBEDDING_BYTES + largest


def test_an_existing_destination_is_replaced_only_with_force(source, tmp_path):
    convert.convert(source, tmp_path / "ours", dtype="float16")
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="already exists: choose another name, or use force"):
        convert.convert(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == before
    convert.convert(source, tmp_path / "ours", force=True)
    assert mt.load_model(tmp_path / "ours").config == mt.load_model(source).config
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="is not a model folder"):
        convert.convert(source, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("after", [1, 7, 40])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_changes_nothing(source, tmp_path, exists, after, error):
    destination = tmp_path / "ours"
    if exists:
        model_folder.save(destination, random_model(SETTINGS["post_norm"]))

    def contents():
        return {path.name: path.read_bytes() for path in destination.iterdir()} if destination.exists() else None

    before = contents()
    calls = []

    def report(done, total):
        calls.append((done, total))
        if len(calls) == after:
            raise error

    with pytest.raises(error):
        convert.convert(source, destination, force=True, report=report)
    assert contents() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"bart", "ours"}


def test_progress_reaches_the_total(source, tmp_path):
    calls = []
    convert.convert(source, tmp_path / "ours", report=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1] == 4 * sum(a.size for _, a in tree_flatten(mt.load_model(source).parameters()))


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_convert_command(source, tmp_path):
    result = run("convert", source, tmp_path / "ours", "--dtype", "float16")
    assert (result.exit_code, result.stdout) == (0, "")
    assert mt.load_model(tmp_path / "ours").config.dims == DIMS
    again = run("convert", source, tmp_path / "ours")
    assert again.exit_code == 1 and "already exists" in again.output and len(again.output.splitlines()) == 1
    assert run("convert", source, tmp_path / "ours", "--force", "--set", "norm_eps=1e-6").exit_code == 0
    assert mt.load_model(tmp_path / "ours").config.norm_eps == 1e-6
    assert run("convert", source, tmp_path / "new", "--set", "norm_eps").exit_code == 2
    missing = run("convert", tmp_path / "nowhere", tmp_path / "new")
    assert missing.exit_code == 1 and "nowhere" in missing.output


def test_info_command_describes_a_checkpoint(source):
    facts = json.loads(run("info", source, "--json").output)
    assert (facts["family"], facts["stored_dtype"], facts["config"]["dims"]) == ("bart", ["float32"], DIMS)
    assert "torch checkpoint, bart" in " ".join(run("info", source).output.split())


WIDE = 64


def wide_tensors():
    """Return random tensors of a BART with all dimensions 64, the size of a quantisation group."""
    return {
        name: mx.random.normal(
            [WIDE if length in (DIMS, 10, 12) else length for length in array.shape], key=mx.random.key(i)
        )
        for i, (name, array) in enumerate(sorted(bart_tensors().items()))
    }


WIDE_CONFIG = BART_CONFIG | {"d_model": WIDE, "encoder_ffn_dim": WIDE, "decoder_ffn_dim": WIDE}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_conversion(tmp_path, bits):
    source = write_checkpoint(tmp_path / "wide", wide_tensors(), WIDE_CONFIG)
    arguments = [str(source), str(tmp_path / "ours"), "--quantize", str(bits)]
    assert CliRunner().invoke(cli.main, ["convert", *arguments]).exit_code == 0
    stored = model_folder.read_config(tmp_path / "ours")
    assert (stored.quantization.bits, stored.quantization.group_size) == (bits, 64)
    assert f"quantised to {bits} bits" in (tmp_path / "ours" / "README.md").read_text()
    assert f"quantised to {bits} bits" in CliRunner().invoke(cli.main, ["info", str(tmp_path / "ours")]).output
    plain, quantised = (dict(tree_flatten(mt.load_model(path).parameters())) for path in (source, tmp_path / "ours"))
    in_memory = dict(tree_flatten(mt.load_model(source, quantize=bits).parameters()))
    for name, array in plain.items():
        assert mx.array_equal(in_memory[name], quantised[name]), name
        exact = name.endswith("bias") or "norm" in name or "positions" in name
        assert bool(mx.array_equal(array, quantised[name])) == exact, name
        assert mx.abs(array - quantised[name]).max() < (0.5 if bits == 4 else 0.05)
    mt.convert(source, tmp_path / "unquantised")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("ours", "unquantised")]
    assert sizes[0] < sizes[1] * (0.5 if bits == 8 else 0.35)
    quantised_on_load = dict(tree_flatten(mt.load_model(tmp_path / "unquantised", quantize=bits).parameters()))
    assert all(mx.array_equal(quantised_on_load[name], quantised[name]) for name in quantised)


def test_progress_of_a_quantised_conversion(tmp_path):
    calls = []
    source = write_checkpoint(tmp_path / "wide", wide_tensors(), WIDE_CONFIG)
    convert.convert(source, tmp_path / "ours", quantize=8, dtype="float16", report=lambda *call: calls.append(call))
    assert len(calls) > 10 and calls == sorted(calls)
    stored = sum(array.nbytes for array in mx.load(str(tmp_path / "ours" / "model.safetensors")).values())
    assert calls[-1] == (stored, stored)


def test_a_failed_conversion_does_not_wait_for_checksums(tmp_path, source, monkeypatch):
    stopped = []
    monkeypatch.setattr(convert, "file_checksums", lambda *arguments: stopped.append(arguments[-1].wait(20)))

    def report(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(source, tmp_path / "ours", report=report)
    assert stopped == [True]


def test_models_that_cannot_be_quantised(source, tmp_path):
    with pytest.raises(ValueError, match="must be multiples of 64: .* has (8|10|12)"):
        convert.convert(source, tmp_path / "ours", quantize=8)
    with pytest.raises(ValueError, match="bits must be one of 4, 8, not 3"):
        convert.convert(source, tmp_path / "ours", quantize=3)
    assert not (tmp_path / "ours").exists()
    wide = write_checkpoint(tmp_path / "wide", wide_tensors(), WIDE_CONFIG)
    convert.convert(wide, tmp_path / "ours", quantize=8)
    with pytest.raises(ValueError, match="is already quantised to 8 bits: leave out quantize"):
        mt.load_model(tmp_path / "ours", quantize=4)


def test_float16_is_an_error_for_models_that_overflow(tmp_path, monkeypatch, source):
    monkeypatch.setitem(FAMILIES["bart"].constants, "overflows_float16", True)
    with pytest.raises(ValueError, match="overflow float16: use bfloat16 or float32, or insist with"):
        convert.convert(source, tmp_path / "ours", dtype="float16")
    convert.convert(source, tmp_path / "ours", dtype="float16", allow_overflow=True)
    with pytest.raises(ValueError, match="overflow float16"):
        convert.load(source, dtype="float16")
    arguments = ["convert", str(source), str(tmp_path / "more"), "--dtype", "float16"]
    assert CliRunner().invoke(cli.main, arguments).exit_code == 1
    assert CliRunner().invoke(cli.main, [*arguments, "--allow-overflow"]).exit_code == 0


def test_other_files_of_a_training_run_are_ignored(source):
    (source / "model.safetensors").rename(source / "weights.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (source / name).write_bytes(b"junk")
    assert mt.load_model(source).config.dims == DIMS


class TestModelFolders:
    """Model folders as sources: another precision, everything else unchanged."""

    @pytest.fixture
    def ours(self, tmp_path):
        """A converted model, in float32."""
        convert.convert(write_checkpoint(tmp_path / "wide", wide_tensors(), WIDE_CONFIG), tmp_path / "ours")
        return tmp_path / "ours"

    @pytest.mark.parametrize("name", [".", "model.safetensors"])
    @pytest.mark.parametrize(("dtype", "quantize"), [("float16", None), (None, 8), ("bfloat16", 4), (None, None)])
    def test_another_precision(self, ours, tmp_path, name, dtype, quantize):
        convert.convert(ours / name, tmp_path / "small", dtype=dtype, quantize=quantize)
        before, after = (model_folder.read_config(folder) for folder in (ours, tmp_path / "small"))
        assert dataclasses.replace(after, quantization=None) == before
        assert (after.quantization.bits if after.quantization else None) == quantize
        model_folder.save(tmp_path / "saved", mt.load_model(ours), dtype=dtype, quantize=quantize)
        expected, stored = (
            safetensors.read_arrays(tmp_path / folder / "model.safetensors") for folder in ("saved", "small")
        )
        assert expected.keys() == stored.keys()
        assert all(mx.array_equal(array, stored[name]) for name, array in expected.items())
        assert (tmp_path / "small" / "README.md").read_text() == (ours / "README.md").read_text()

    def test_quantised_models_are_not_quantised_again(self, ours, tmp_path):
        convert.convert(ours, tmp_path / "small", quantize=8)
        convert.convert(tmp_path / "small", tmp_path / "again", quantize=8, dtype="float16")
        assert model_folder.read_config(tmp_path / "again").quantization.bits == 8
        with pytest.raises(ValueError, match="small is already quantised to 8 bits: leave out quantize"):
            convert.convert(tmp_path / "small", tmp_path / "smaller", quantize=4)
        assert not (tmp_path / "smaller").exists()

    @pytest.mark.parametrize("options", [{"family": "bart"}, {"rename": {"a": "b"}}, {"settings": {"pad_id": 1}}])
    def test_options_of_torch_checkpoints_are_refused(self, ours, tmp_path, options):
        with pytest.raises(
            ValueError, match=f"ours is a model folder and no torch checkpoint: leave out {next(iter(options))}."
        ):
            convert.convert(ours, tmp_path / "other", **options)

    def test_bundled_model_has_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(cli.main, ["convert", "bundled", "here", "--dtype", "float16"])
        assert result.exit_code == 0, result.output
        assert mt.load_model("here").config == mt.load_model("bundled").config == mt.load_model().config
        (tmp_path / "here").rename("bundled")
        assert mt.load("bundled", dtype="float16")[1] is not None  # a path takes precedence


def test_loading_a_conversion_of_an_earlier_version_warns(source, tmp_path, caplog):
    convert.convert(source, tmp_path / "ours")
    mt.load_model(tmp_path / "ours")
    assert not caplog.records
    path = tmp_path / "ours" / "config.json"
    current = json.loads(path.read_text())
    first_format = {name: value for name, value in current.items() if name != "conversion_version"}
    for config in (current | {"conversion_version": 1}, first_format | {"format_version": 1}):
        path.write_text(json.dumps(config))
        caplog.clear()
        mt.load_model(tmp_path / "ours")
        assert f"{tmp_path / 'ours'} was converted by an earlier version of mlx_transformer" in caplog.text
        convert.convert(tmp_path / "ours", tmp_path / "copy", force=True)
        caplog.clear()
        mt.load_model(tmp_path / "copy")
        assert "was converted by an earlier version" in caplog.text
    (tmp_path / "ours" / "README.md").unlink()  # a model that was trained, not converted
    caplog.clear()
    mt.load_model(tmp_path / "ours")
    assert not caplog.records


@pytest.mark.parametrize("name", ["._model.safetensors", "._last.ckpt", ".hidden.pt"])
def test_files_whose_names_begin_with_a_dot_do_not_count(source, tmp_path, name):
    """macOS writes such files to exFAT drives."""
    folder = tmp_path / "copied"
    folder.mkdir()
    (folder / "last.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    convert.convert(folder, tmp_path / "ours")
    assert mt.load_model(folder).config == mt.load_model(tmp_path / "ours").config
    (folder / "last.safetensors").unlink()
    with pytest.raises(ValueError, match="a folder must have a checkpoint"):
        mt.load_model(folder)


@pytest.mark.parametrize("quantize", [None, 8])
def test_loading_draws_no_random_numbers_of_the_caller(tmp_path, quantize):
    source = write_checkpoint(tmp_path / "wide", wide_tensors(), WIDE_CONFIG)
    convert.convert(source, tmp_path / "ours", quantize=quantize)
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(4,)).tolist()
    for load in (lambda: mt.load_model(tmp_path / "ours"), lambda: mt.load_model(source, quantize=quantize)):
        mx.random.seed(3)
        load()
        assert mx.random.uniform(shape=(4,)).tolist() == expected
