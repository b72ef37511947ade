"""Peak memory of loading and converting, beside that of the result, for an encoder with the shape of T5 XXL's."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.peak_memory import growth

import mlx_transformer as mt
from benchmarks.load_memory import PRECISIONS, write_encoder
from mlx_transformer.model import precision

LIMIT = 1.2  # of the bytes of the result


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def sources(request, tmp_path_factory):
    """A checkpoint, and the model folder that it is converted to, in two types."""
    folder = tmp_path_factory.mktemp(request.param)
    write_encoder(folder / "checkpoint", 32, precision.DTYPES[request.param])
    mt.convert(folder / "checkpoint", folder / "model folder")
    return folder


def peak_of(run):
    """Return the result of a call, and the bytes of MLX's arrays at their peak during it."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    result = run()
    return result, mx.get_peak_memory() - before


def size_of(model):
    return sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())


@pytest.mark.cpu
@pytest.mark.parametrize("quantised", ["kept", "dequantised"])
@pytest.mark.parametrize("source", ["checkpoint", "model folder"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_loading_needs_little_more_memory_than_the_result(sources, source, name, quantised, monkeypatch):
    if quantised == "kept":  # as on a GPU
        monkeypatch.setattr(precision, "dequantize", lambda model: None)
    model, peak = peak_of(lambda: mt.load_model(sources / source, **PRECISIONS[name]))
    assert peak < LIMIT * size_of(model)
    bits = PRECISIONS[name].get("quantize", 16 if name == "bfloat16" else 32)
    if quantised == "kept":
        assert size_of(model) < 1.2 * bits / 8 * mt.Transformer(model.config).num_parameters


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantize": 8}, {"dtype": "bfloat16", "quantize": 4}])
@pytest.mark.parametrize("source", ["checkpoint", "model folder"])
def test_converting_needs_little_more_memory_than_the_result(sources, source, options, tmp_path):
    _, peak = peak_of(lambda: mt.convert(sources / source, tmp_path / "out", **options))
    assert peak < LIMIT * (tmp_path / "out/model.safetensors").stat().st_size


@pytest.mark.parametrize("options", [{"quantize": 8}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantize": 4}])
def test_a_checkpoint_and_its_model_folder_give_the_same_weights(sources, options, tmp_path):
    """Also if the folder is written in that precision; weights are quantised as they are stored."""
    for source in ("checkpoint", "model folder"):
        mt.convert(sources / source, tmp_path / source, **options)
    folders = [sources / "checkpoint", sources / "model folder", tmp_path / "checkpoint", tmp_path / "model folder"]
    quantize, dtype = options.get("quantize"), options.get("dtype", "float32")
    models = [mt.load_model(folder, dtype=dtype, quantize=quantize) for folder in folders]
    first, *others = [dict(tree_flatten(model.parameters())) for model in models]
    for arrays in others:
        assert arrays.keys() == first.keys()
        assert all(mx.array_equal(array, first[name]) for name, array in arrays.items())


def test_quantisation_is_of_the_numbers_that_are_stored(sources, tmp_path):
    """The integers do not depend on the type of the scales."""
    mt.convert(sources / "checkpoint", tmp_path / "float32", dtype="float32", quantize=8)
    mt.convert(sources / "checkpoint", tmp_path / "bfloat16", dtype="bfloat16", quantize=8)
    exact, cast = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("float32", "bfloat16"))
    assert cast["source_embedding.scales"].dtype == mx.bfloat16
    assert mx.array_equal(exact["source_embedding.weight"], cast["source_embedding.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkpoint", "model folder"])
@pytest.mark.parametrize("name", ["bfloat16", "8 bits"])
def test_resident_memory_of_loading(source, name, tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # glibc returns freed memory, as on other systems
    write_encoder(tmp_path / "checkpoint", 8, mx.float32)
    mt.convert(tmp_path / "checkpoint", tmp_path / "model folder")
    size = (tmp_path / "model folder/model.safetensors").stat().st_size
    program = f"import mlx_transformer.weights.convert; before = peak(); mt.load_model(source, **{PRECISIONS[name]!r})"
    assert growth(program, tmp_path / source) < LIMIT * size / 2  # the CPU dequantises to bfloat16
