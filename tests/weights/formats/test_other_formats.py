"""Files and folders that are no checkpoints of torch are named as what they are, by every command, in one line."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from support.checkpoint_files import Call, numbers, pickled, safetensors_file, tensor, zip_file

from mlx_transformer.cli import main
from mlx_transformer.weights.formats.checkpoint import CheckpointError, read_checkpoint


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved_by(function, *arguments):
    buffer = io.BytesIO()
    function(buffer, *arguments)
    return buffer.getvalue()


def arrays(**named):
    return saved_by(lambda buffer: np.savez(buffer, **named))


def tar(name, content):
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def ctranslate2(spec):
    name = spec.encode() + b"\0"
    return struct.pack("<IH", 6, len(name)) + name + struct.pack("<II", 7, 2) + bytes(range(200))


def protobuf(field, content):
    return bytes([field << 3 | 2, len(content)]) + content


CONFIG = json.dumps({"architectures": ["T5"], "model_type": "t5"}).encode()
ONNX = b"\x08\x07" + protobuf(2, b"pytorch") + protobuf(3, b"2.4") + protobuf(7, b"\n\x05graph")
SAFETENSORS = safetensors_file({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}, numbers())
TORCH = zip_file({"a": tensor()}, {"0": numbers()})
# What it is -> the bytes of the file, words of the error.
FILES = {
    "ONNX": (ONNX, "an ONNX model; convert the torch checkpoint that it was made from"),
    "an old ONNX": (b"\x08\x03" + protobuf(2, b"CNTK") + protobuf(7, b"\n\x05graph"), "an ONNX model"),
    "ONNX without a producer": (b"\x08\x0a" + protobuf(7, b"\n\x05graph"), "an ONNX model"),
    "GGUF": (b"GGUF" + struct.pack("<I2Q", 3, 1, 2) + bytes(40), "a model of llama.cpp; convert the torch checkpoint"),
    "GGML": (b"lmgg" + bytes(40), "a model of llama.cpp"),
    "npz": (arrays(w=np.ones(3)), "a file of NumPy arrays; save the weights"),
    "npy": (saved_by(np.save, np.ones(3)), "a file of NumPy arrays"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file of Keras or TensorFlow; use the model's torch weights"),
    "Keras": (
        zipped(**{"metadata.json": "{}", "config.json": "{}", "model.weights.h5": b"\x89HDF"}),
        "a model of Keras; save its weights as a torch checkpoint",
    ),
    "SavedModel": (b"\x08\x01" + protobuf(2, protobuf(1, b"serve") + bytes(20)), "a TensorFlow SavedModel or frozen"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(100), "a TFLite model"),
    "Core ML": (b"\x08\x04" + protobuf(2, protobuf(1, b"input")) + bytes(20), "a Core ML model"),
    "Flax": (b"\x82\xa7decoder\x81\xa1w\x01\xa7encoder\x81\xa1w\x02", "a Flax model; use the model's torch weights"),
    "CTranslate2": (ctranslate2("TransformerSpec"), "a CTranslate2 model; convert the torch checkpoint"),
    "CTranslate2's Whisper": (ctranslate2("WhisperSpec"), "a CTranslate2 model"),
    "MXNet": (
        struct.pack("<3Q", 0x112, 0, 2) + bytes(range(90)),
        "a model of MXNet; write its arrays to a torch check",
    ),
    "a torch.package": (zipped(**{"a/.data/extern_modules": "", "a/m/model.pkl": ""}), "a package of torch.package"),
    "a git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a git-lfs pointer to the file; run `git lfs pull`, or download the file itself",
    ),
    "a web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page; download the file itself"),
    "an error in XML": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "a web page"),
    "zeros": (bytes(1000), "a file of zeros, as of an unfinished download"),
    "a tokenizer": (b'{"version": "1.0", "truncation": null, "added_tokens": []}', "a tokenizer; give the path of the"),
    "a sentencepiece model": (
        b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0c",
        "a sentencepiece model, which is a token",
    ),
    "a vocabulary": (b'{"hello": 0, "world": 1}', "a JSON file; give the path of the weights"),
    "a list": (b'["hello", "world"]', "a JSON file"),
    "a configuration": (CONFIG, "a configuration; give the path of the weights"),
    "an index under another name": (b'{"metadata": {}, "weight_map": {}}', "an index of shards; let its name end with"),
    "a CSV": ("english,fran\u00e7ais\nhello,bonjour\n".encode(), "a text file"),
    "a list of tokens": (b"hello\nworld\n", "a text file"),
    "gzip": (gzip.compress(TORCH), "a file compressed by gzip; unpack it, and give the path of the checkpoint inside"),
    "tar": (tar("model.pt", TORCH), "a tar archive; unpack it"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(30), "an archive of 7-Zip; unpack it"),
    "bzip2": (b"BZh91AY&SY" + bytes(30), "a compressed file; unpack it"),
    "zip": (zipped(**{"model.pt": TORCH}), "this one has no data.pkl; unpack it, and give the path"),
    "an optimizer": (
        zip_file({"state": {0: {"exp_avg": tensor()}}, "param_groups": [{"lr": 0.1}]}, {"0": numbers()}),
        "must contain a state dict, not the state of an optimizer; give the path of the weights",
    ),
    "a scheduler": (zip_file({"last_epoch": 3, "_step_count": 4}, {}), "not the state of a scheduler"),
    "a gradient scaler": (zip_file({"scale": 3.0, "growth_factor": 2.0}, {}), "not the state of a gradient scaler"),
    "training arguments": (
        zip_file(Call("transformers.training_args", "TrainingArguments", (), {"lr": 0.1}), {}),
        "not an object of 'transformers.training_args.TrainingArguments'; give the path of the weights",
    ),
    "a vocabulary of torch": (
        zip_file({"hello": 0, "world": 1}, {}),
        "not only 'hello', 'world'; save it with torch.s",
    ),
    "a plain pickle": (pickle.dumps({"a": 1}), "this one contains a plain dict"),
    "nothing": (b"", "must not be empty; it may be damaged: copy it again"),
}
RUNNER = CliRunner()


def check_commands(path, tmp_path, words, readable=False):
    """Check that every command names the file in one line, and writes nothing; info describes a readable one."""
    before = sorted(path.parent.rglob("*"))
    for arguments in (
        ["convert", str(path), str(tmp_path / "converted")],
        ["info", str(path)],
        ["generate", "--model", str(path), "Hello!"],
    ):
        result = RUNNER.invoke(main, arguments)
        if readable and arguments[0] == "info":
            assert result.exit_code == 0 and words in result.stdout
            continue
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("Error: "), result.stderr
        assert words in result.stderr, result.stderr
    assert sorted(path.parent.rglob("*")) == before and not (tmp_path / "converted").exists()


@pytest.mark.parametrize("kind", FILES)
def test_files_are_named_by_their_content(tmp_path, kind):
    content, words = FILES[kind]
    for name in ("model.bin", "model.safetensors", "anything"):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / "files" / name)
        assert words in str(caught.value), caught.value
    check_commands(tmp_path / "files" / "model.bin", tmp_path, words)


@pytest.mark.parametrize(
    "name, words",
    [
        ("frozen.pb", "a TensorFlow SavedModel or frozen graph"),
        ("model.ckpt-100.index", "a TensorFlow checkpoint"),
        ("model.ckpt-100.data-00000-of-00001", "a TensorFlow checkpoint"),
        ("model.onnx", "an ONNX model"),
        ("model.mlmodel", "a Core ML model"),
        ("rng_state_0.pth", "the state of a training, without weights; give the path of the weights"),
        ("rust_model.ot", "a model of rust-bert"),
        ("__0_0.distcp", "a sharded checkpoint of torch.distributed; join the shards"),
        ("weights.tflite", "a TFLite model"),
    ],
)
def test_files_whose_content_tells_nothing_are_named_by_their_names(tmp_path, name, words):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / name).write_bytes(b"\n\x05abc\x12\xff\xfe" + bytes(20))
    check_commands(tmp_path / "files" / name, tmp_path, words)


# Files of a folder -> words of the error. Names that end with "/" are folders.
FOLDERS = {
    "SavedModel": (
        ["saved_model.pb", "variables/"],
        "'saved_model.pb' belongs to a TensorFlow SavedModel or frozen graph",
    ),
    "a TensorFlow checkpoint": (["checkpoint", "model.ckpt-9.index", "model.ckpt-9.data-00000-of-00001"], "TensorFlow"),
    "transformers' TensorFlow": (["tf_model.h5", "tokenizer.json"], "from_tf=True"),
    "Flax": (["flax_model.msgpack"], "'flax_model.msgpack' belongs to a Flax model"),
    "Orbax": (["_METADATA", "manifest.ocdbt"], "a checkpoint of Orbax"),
    "ONNX": (["encoder_model.onnx", "decoder_model.onnx"], "'decoder_model.onnx' belongs to an ONNX model"),
    "llama.cpp": (["model-q4.gguf"], "a model of llama.cpp"),
    "MLX's arrays": (["weights.npz"], "a file of NumPy arrays"),
    "Core ML": (["Manifest.json", "Data/"], "a Core ML model"),
    "an adapter": (
        ["adapter_config.json", "adapter_model.safetensors"],
        "an adapter, no whole model; give its base as the model",
    ),
    "an adapter's configuration": (["adapter_config.json"], "an adapter"),
    "DeepSpeed": (["latest", "global_step10/", "zero_to_fp32.py"], "join the shards with its zero_to_fp32.py"),
    "DeepSpeed's shards": (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "a sharded checkpoint of DeepSpeed"),
    "torch.distributed": ([".metadata", "__0_0.distcp"], "a sharded checkpoint of torch.distributed"),
    "a run": (
        ["checkpoint-500/", "checkpoint-1000/"],
        "'checkpoint-1000/' belongs to a run with several checkpoints; give the",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_are_named_by_their_files(tmp_path, kind):
    names, words = FOLDERS[kind]
    folder = tmp_path / "files"
    folder.mkdir()
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(SAFETENSORS)
    check_commands(folder, tmp_path, words)


def test_a_folder_of_ctranslate2_is_named_by_its_content(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.json").write_text('{"bos_token": "<s>"}')
    (tmp_path / "files" / "shared_vocabulary.json").write_text("[]")
    (tmp_path / "files" / "model.bin").write_bytes(ctranslate2("TransformerSpec"))
    check_commands(tmp_path / "files", tmp_path, "a CTranslate2 model")


def test_a_folder_of_mlx_lm_is_named_by_its_model_type_or_quantisation(tmp_path):
    (tmp_path / "files").mkdir()
    mx.save_safetensors(
        str(tmp_path / "files" / "model.safetensors"), {"model.layers.0.self_attn.q_proj.scales": mx.ones(2)}
    )
    for config, words in (
        ({"model_type": "llama", "quantization": {"bits": 4}}, "it is a decoder without an encoder"),
        (
            {"model_type": "t5", "quantization": {"group_size": 64, "bits": 4}},
            "must not be quantised, as this one is alr",
        ),
    ):
        (tmp_path / "files" / "config.json").write_text(json.dumps(config))
        check_commands(tmp_path / "files", tmp_path, words, readable=True)


@pytest.mark.parametrize("name", ["model.safetensors", "weights", "model.bin", "model.onnx"])
def test_checkpoints_are_read_under_any_name(tmp_path, name):
    for content in (SAFETENSORS, TORCH):
        (tmp_path / name).write_bytes(content)
        with read_checkpoint(tmp_path / name) as checkpoint:
            assert list(checkpoint.tensors) == ["a"]


@pytest.mark.parametrize("length", [35615, 8827, 0x3A0708])
def test_lengths_of_headers_are_not_taken_for_other_formats(tmp_path, length):
    """The length of a safetensors header may have the bytes of gzip, of JSON or of ONNX."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.bin").write_bytes(safetensors_file(header.ljust(length)))
    with read_checkpoint(tmp_path / "model.bin") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


@pytest.mark.torch
@pytest.mark.parametrize("save", ["script", "trace", "export"])
def test_programs_of_torch_are_named(tmp_path, save):
    torch = pytest.importorskip("torch")
    linear, example = torch.nn.Linear(2, 2), torch.ones(1, 2)
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if save == "export":
            torch.export.save(torch.export.export(linear, (example,)), path.with_suffix(".pt2"))
            path.with_suffix(".pt2").rename(path)
        else:
            torch.jit.save(torch.jit.script(linear) if save == "script" else torch.jit.trace(linear, example), path)
    words = "a program of torch.export; save" if save == "export" else "a TorchScript program; save the weights with"
    check_commands(path, tmp_path, words)


@pytest.mark.torch
def test_a_state_dict_written_by_pickle_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.pkl").write_bytes(pickle.dumps({"a": torch.ones(2)}))
    check_commands(
        tmp_path / "files" / "model.pkl", tmp_path, "this one is by pickle; load it with pickle, and save it"
    )


def test_pickled_content_of_text_is_not_text(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickled("text"))
    with pytest.raises(CheckpointError, match="must come from torch.save"):
        read_checkpoint(tmp_path / "model.pt")
