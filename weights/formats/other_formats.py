"""Names files that are no checkpoints of torch by their first bytes, their names, or the members of an archive."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from mlx_transformer.weights.formats.file_bytes import FileBytes
from mlx_transformer.weights.formats.tensors import CheckpointError


class OtherFormat(NamedTuple):
    """A format that cannot be read.

    Attributes:
        description: What a file of the format is, with an article.
        remedy: What the user can do.
        start: A regular expression that matches the first bytes of a file.
        names: Patterns of file names, which count if the first bytes tell nothing. Those of folders end with "/".
        members: A regular expression that is found in the name of a member of a zip archive.
    """

    description: str
    remedy: str
    start: bytes = b""
    names: tuple[str, ...] = ()
    members: str = ""

    def error(self, rule: str) -> CheckpointError:
        """Return the error of a file of the format: a rule that ends with "this is", the description, the remedy."""
        return CheckpointError(f"{rule} {self.description}", self.remedy)


DOWNLOAD_AGAIN = "download the file itself, for example with `hf download`"
FROM_TENSORFLOW = "use the model's torch weights, or make them by transformers 4: from_pretrained(..., from_tf=True)"
FROM_FLAX = "use the model's torch weights, or make them by transformers 4: from_pretrained(..., from_flax=True)"
USE_ORIGINAL = "convert the torch checkpoint that it was made from"
FROM_OLD = "write its arrays to a torch checkpoint, or use a model of a toolkit on torch"
SAVE_WEIGHTS = "save the weights with torch.save(model.state_dict(), ...)"
GIVE_WEIGHTS = "give the path of the weights, or of the folder with both"
USE_ADAPTER = (
    "give its base as the model and it by generate --adapter (adapter=), or convert it by convert --base MODEL"
)
UNPACK = "unpack it, and give the path of the checkpoint inside"
START_SIZE = 2**16  # bytes that are looked at
TEXT_SIZE = 512

ADAPTER = OtherFormat(
    "an adapter, no whole model",
    USE_ADAPTER,
    names=("adapter_model.*", "adapter_config.json"),
)
TRAINING_STATE = OtherFormat(
    "the state of a training, without weights",
    "give the path of the weights",
    names=(
        *("training_args.*", "optimizer.*", "optimizer_[0-9]*", "*.optimizer.npz", "scheduler.*", "scaler.*"),
        "rng_state*",
    ),
)
CTRANSLATE2 = OtherFormat(
    "a CTranslate2 model",
    USE_ORIGINAL,
    rb"[\x01-\x20]\0\0\0.\0\w*Spec\0",
    ("shared_vocabulary.*", "source_vocabulary.*"),
)
# The first one that matches counts.
OTHER_FORMATS = (
    OtherFormat(
        "a git-lfs pointer to the file", "run `git lfs pull`, or " + DOWNLOAD_AGAIN, rb"version https://git-lfs"
    ),
    OtherFormat("a web page", DOWNLOAD_AGAIN, rb"\s*<(?i:!doctype|html|\?xml|head)"),
    OtherFormat("a file of zeros, as of an unfinished download", DOWNLOAD_AGAIN, rb"\0{16}"),
    ADAPTER,
    TRAINING_STATE,
    OtherFormat("a model of llama.cpp", USE_ORIGINAL, rb"GGUF|lmgg|fmgg|tjgg", ("*.gguf", "*.ggml", "ggml-*.bin")),
    OtherFormat("an HDF5 file of Keras or TensorFlow", FROM_TENSORFLOW, rb"\x89HDF\r\n\x1a\n", ("*.h5", "*.hdf5")),
    OtherFormat(
        "a model of Keras", "save its weights as a torch checkpoint", names=("*.keras",), members=r"model\.weights\.h5$"
    ),
    OtherFormat("a TFLite model", USE_ORIGINAL, rb".{4}TFL3", ("*.tflite",)),
    OtherFormat("an ExecuTorch program", USE_ORIGINAL, rb".{4}ET\d\d", ("*.pte",)),
    OtherFormat(
        "a TensorFlow SavedModel or frozen graph", FROM_TENSORFLOW, rb"\x08\x01\x12.{1,4}\n", ("saved_model.pb", "*.pb")
    ),
    OtherFormat(
        "a TensorFlow checkpoint",
        FROM_TENSORFLOW,
        names=("*.data-?????-of-?????", "*.ckpt.meta", "*.ckpt-*.meta", "*.index"),
    ),
    OtherFormat(
        "an ONNX model",
        USE_ORIGINAL,
        rb"\x08[\x01-\x14](\x12[\x01-\x40][ -~]+[\x1a\"2:B]|[:B])",
        ("*.onnx", "*.onnx_data", "*.ort"),
    ),
    OtherFormat(
        "a Core ML model", USE_ORIGINAL, rb"\x08[\x01-\x14]\x12.{1,2}\n", ("*.mlmodel", "*.mlpackage*", "Manifest.json")
    ),
    CTRANSLATE2,
    OtherFormat("a lexical shortlist of Marian", "give it by generate --shortlist", names=("lex.*.bin",)),
    OtherFormat("a file of NumPy arrays", SAVE_WEIGHTS, rb"\x93NUMPY", ("weights*.npz", "*.npy"), r"\.npy$"),
    OtherFormat(
        "a Flax model", FROM_FLAX, rb"[\x81-\x8f][\xa1-\xbf\xd9][ -~]{2}|\xde.{2}[\xa1-\xbf\xd9]", ("*.msgpack",)
    ),
    OtherFormat("a checkpoint of Orbax", FROM_FLAX, names=("_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA")),
    OtherFormat(
        "a program of torch.export", SAVE_WEIGHTS, names=("*.pt2",), members=r"exported_program|(^|/)archive_format$"
    ),
    OtherFormat("a package of torch.package", SAVE_WEIGHTS, members=r"\.data/extern_modules$"),
    OtherFormat(
        "a TorchScript program",
        "save the weights with torch.save(torch.jit.load(...).state_dict(), ...)",
        members=r"(^|/)(constants\.pkl$|code/)",
    ),
    OtherFormat("a model of MXNet", FROM_OLD, rb"\x12\x01\0{6}", ("*.params",)),
    OtherFormat("a model of Lua Torch", FROM_OLD, names=("*.t7",)),
    OtherFormat("a model of rust-bert", USE_ORIGINAL, names=("*.ot",)),
    OtherFormat(
        "a sharded checkpoint of DeepSpeed",
        "join the shards with its zero_to_fp32.py",
        names=("zero_to_fp32.py", "zero_pp_rank_*", "*_optim_states.pt", "global_step*/"),
    ),
    OtherFormat(
        "a sharded checkpoint of torch.distributed",
        "join the shards: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
        names=("*.distcp",),
    ),
    OtherFormat("a sentencepiece model, which is a tokenizer", GIVE_WEIGHTS, rb"\n.\n.<?\w{3}>?\x15"),
    OtherFormat("a file compressed by gzip", UNPACK, rb"\x1f\x8b", ("*.gz", "*.tgz")),
    OtherFormat("an archive of 7-Zip", UNPACK, rb"7z\xbc\xaf\x27\x1c", ("*.7z",)),
    OtherFormat(
        "a compressed file", UNPACK, rb"BZh\d|\xfd7zXZ\0|\x28\xb5\x2f\xfd|Rar!", ("*.bz2", "*.xz", "*.zst", "*.rar")
    ),
    OtherFormat("a tar file of torch 0.1", "load it with torch and save its state dict", rb"sys_info\0.{248}ustar"),
    OtherFormat("a tar archive", UNPACK, rb".{257}ustar", ("*.tar", "*.nemo")),
    OtherFormat("a zip archive", UNPACK, names=("*.zip",)),
    OtherFormat("a cache of huggingface_hub", "give owner/name, or a folder in snapshots", names=("snapshots/",)),
    OtherFormat(
        "a run with several checkpoints",
        "give the path of one",
        names=("checkpoint-*/", "checkpoints/", "lightning_logs/"),
    ),
)
TEXTS = (
    OtherFormat("a tokenizer", GIVE_WEIGHTS, rb'\s*\{.*"added_tokens"'),
    OtherFormat("an index of shards", "let its name end with .index.json, beside the shards", rb'\s*\{.*"weight_map"'),
    OtherFormat("a configuration", GIVE_WEIGHTS, rb'\s*\{.*"(model_type|architectures)"'),
    OtherFormat("a JSON file", GIVE_WEIGHTS, rb"\s*[\[{]"),
    OtherFormat("a text file", GIVE_WEIGHTS),
)


def describe_content(data: FileBytes) -> OtherFormat | None:
    """Return the format of a file by its first bytes; None if they tell nothing."""
    start = data[:START_SIZE]
    formats = [other for other in OTHER_FORMATS if other.start] + list(TEXTS if is_text(data) else ())
    return next((other for other in formats if re.compile(other.start, re.DOTALL).match(start)), None)


def describe_members(members: Iterable[str]) -> OtherFormat | None:
    """Return the format of a zip archive by the names of its members; None if they tell nothing."""
    names = list(members)
    for other in OTHER_FORMATS:
        if other.members and any(map(re.compile(other.members).search, names)):
            return other
    return None


def describe_name(name: str) -> OtherFormat | None:
    """Return the format of a file by its name; None if that tells nothing."""
    return next((other for other in OTHER_FORMATS if any(fnmatchcase(name, pattern) for pattern in other.names)), None)


def describe_names(names: Iterable[str]) -> tuple[str, OtherFormat] | None:
    """Return the first of a folder's files that is of another format, and that; None if there is none."""
    formats = ((name, describe_name(name)) for name in sorted(names))
    return next(((name, other) for name, other in formats if other is not None), None)


def is_text(data: FileBytes) -> bool:
    """Return whether a file begins with text, in UTF-8 and without control characters."""
    start = data[:TEXT_SIZE]
    text = start.decode("utf-8", "ignore")
    is_whole = len(text.encode()) > len(start) - 4  # its last character may be cut
    return is_whole and all(char.isprintable() or char in "\t\n\r\f\ufeff" for char in text)
