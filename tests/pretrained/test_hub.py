"""Hub models: downloads, conversions and the cache, with the real client against a server on loopback.

The client reads its settings when it is imported, so each scene runs in a process of its own, with a home of its own.
"""

import functools
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import constants, errors
from support.bart_files import BART_CONFIG, DIMS, VOCAB, bart_tensors, write_checkpoint
from support.checkpoint_files import safetensors_file, tensor, zip_file
from support.hub_server import TOKEN, Hub
from support.kills import KILL_AT_ACCESS, accesses_to_kill_at
from support.paths import ROOT
from support.tiny_models import SETTINGS, random_model

import mlx_transformer as mt
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.folder import CONVERSION_VERSION
from mlx_transformer.pretrained import cache, hub
from mlx_transformer.storage.checksums import changed_files
from mlx_transformer.weights.formats import checkpoint as checkpoint_module

# Loads what it is told, and gives for each a number by which the weights are known, or the error.
LOAD = """
import json, sys
import mlx.core as mx
mx.set_default_device(mx.cpu)
import mlx_transformer as mt
for name, revision in json.loads(sys.argv[1]):
    try:
        model = mt.load_model(name, dtype=None if len(sys.argv) < 3 else sys.argv[2], revision=revision)
        print(json.dumps(model.output_bias[0].item() if "output_bias" in model else "ours"), flush=True)
    except (OSError, ValueError) as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)
"""
# Loads an adapter on the model of a folder, and prints its rank, or the error.
LOAD_ADAPTER = """
import sys
import mlx.core as mx
mx.set_default_device(mx.cpu)
import mlx_transformer as mt
try:
    print(mt.load_adapter(mt.load_model(sys.argv[1]), sys.argv[2]).rank)
except (OSError, ValueError) as error:
    print(f"{type(error).__name__}: {error}")
"""
# Stands in for a Mac's GPU: chooses its types, and computes on the CPU.
GPU = """
from mlx_transformer.model import precision
precision.gpu_architecture = lambda: "applegpu_g16s"
"""
# As the client's Rust part does when the network fails.
FAILS = """
import huggingface_hub
def fail(*arguments, **options):
    raise RuntimeError("Data processing error:\\nno route")
huggingface_hub.hf_hub_download = fail
"""
# Takes its time to convert, and leaves a trace.
SLOW = """
import time
from mlx_transformer.storage import safetensors
write = safetensors.write_streamed
def write_made(*arguments):
    open("made", "a").write("once\\n")
    time.sleep(1)
    write(*arguments)
safetensors.write_streamed = write_made
"""
# Dies when the new model folder is written, but not yet in its place.
KILLED = """
import os, signal
from mlx_transformer.weights import convert
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
convert.model_card = die
"""


def model_files(mark=0.0, weights="model.safetensors", **settings):
    """Return the files of a checkpoint whose output bias is `mark`."""
    tensors = bart_tensors() | {"final_logits_bias": mx.full((1, VOCAB), mark)}
    config = {"config.json": json.dumps(BART_CONFIG | settings).encode(), "generation_config.json": b"{}"}
    return config | {weights: safetensors(tensors)}


def safetensors(tensors):
    header, data = {}, b""
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += bytes(memoryview(array).cast("B"))
    return safetensors_file(header, data)


def torch_file(mark):
    """Return the same checkpoint as a torch file."""
    entries = bart_tensors() | {"final_logits_bias": mx.full((1, VOCAB), mark)}
    storages = {str(i): bytes(memoryview(array).cast("B")) for i, array in enumerate(entries.values())}
    return zip_file({name: tensor(str(i), array.shape) for i, (name, array) in enumerate(entries.items())}, storages)


@pytest.fixture
def server():
    hub = Hub()
    yield hub
    hub.stop()


class Machine:
    """A user's machine: a home, a working folder, and processes in it."""

    def __init__(self, folder, server):
        self.home, self.work, self.server = folder / "home", folder / "work", server
        self.home.mkdir()
        self.work.mkdir()
        self.kept = self.home / ".cache" / "mlx_transformer"

    def start(self, *arguments, limit=None, **variables):
        inherited = {name: os.environ[name] for name in ("PATH", "LD_PRELOAD") if name in os.environ}
        environment = {
            "HOME": str(self.home),
            "HF_ENDPOINT": self.server.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MLX_DISABLE_COMPILE": "1",
        }
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=self.work,
            env=inherited | environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
        )

    def run(self, *arguments, **options):
        """Run a program; returns exit status, standard output and standard error."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def load(self, *models, first="", dtype=None, **options):
        """Load models (name, or name and revision); returns each one's mark or error, and standard error."""
        pairs = [(model, None) if isinstance(model, str) else model for model in models]
        dtypes = [dtype] if dtype else []
        status, out, err = self.run("-c", first + LOAD, json.dumps(pairs), *dtypes, **options)
        assert status == 0, err
        results = [json.loads(line) for line in out.splitlines()]
        assert len(results) == len(models)
        return (*results, err)

    def cached(self, home):
        """Return the names of the converted models of a repository."""
        return sorted(path.name for path in (self.kept / home).glob("[!.r]*"))

    def files(self):
        """Return all files in the home and working folders."""
        paths = [path for top in (self.home, self.work) for path in top.rglob("*") if not path.is_dir()]
        return sorted(path.relative_to(self.home.parent).as_posix() for path in paths)


@pytest.fixture
def machine(tmp_path, server):
    return Machine(tmp_path, server)


def test_adapters_are_downloaded_and_used_offline(machine, server):
    base = write_checkpoint(machine.work / "base", bart_tensors())
    layer, path = "base_model.model.model.encoder.layers.0.self_attn.q_proj", machine.work / "updates.safetensors"
    mx.save_safetensors(str(path), {f"{layer}.lora_{part}.weight": mx.ones((DIMS, DIMS)) for part in "AB"})
    config = {"peft_type": "LORA", "r": DIMS, "target_modules": ".*encoder.*q_proj"}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": path.read_bytes()}
    server.publish("owner/adapter", files | {"README.md": b"#", "optimizer.pt": b"x", "tokenizer.json": b"{}"})
    server.publish("owner/model", model_files(3.0))

    def load(name, **variables):
        status, out, _ = machine.run("-c", LOAD_ADAPTER, base, name, **variables)
        assert status == 0
        return out.strip()

    assert load("owner/adapter") == str(DIMS)
    assert server.downloads("owner/adapter") == sorted(files)
    assert "the repository owner/model has none: choose another" in load("owner/model")
    assert load("owner/missing").startswith("FileNotFoundError: ")
    assert load("owner/adapter", HF_HUB_OFFLINE="1") == str(DIMS)
    assert load("owner/other", HF_HUB_OFFLINE="1").startswith("HubUnreachableError: ")


def test_a_model_is_downloaded_and_converted_once(machine, server):
    extra = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "README.md", "a.gguf"]
    wanted = model_files(3.0) | {"target_vocab.json": b"{1}", "source.spm": b"spm"}
    commit = server.publish("owner/name", wanted | dict.fromkeys(extra, b"?"))
    assert machine.load("owner/name") == (3.0, "")
    assert server.downloads("owner/name") == sorted(wanted)
    before = len(server.requests)
    assert machine.load("owner/name") == (3.0, "")
    assert [path for _, path, _ in server.requests[before:]] == ["/api/models/owner/name"]
    folder = machine.kept / "owner--name" / f"{commit}-v{CONVERSION_VERSION}"
    assert {path.name for path in folder.iterdir()} >= {"README.md", "config.json", "model.safetensors"}
    places = ("home/.cache/huggingface/", "home/.cache/mlx_transformer/owner--name/")
    assert [path for path in machine.files() if not path.startswith(places)] == []
    assert list(folder.parent.glob(".*.replacement")) == []


@pytest.mark.slow
def test_offline_loads_use_the_last_conversion(machine, server):
    server.publish("owner/name", model_files(3.0), "v1")
    assert machine.load("owner/name", ("owner/name", "v1")) == (3.0, 3.0, "")
    assert machine.load("owner/name", HF_HUB_OFFLINE="1") == (3.0, "")
    server.stop()
    *marks, missing, told = machine.load("owner/name", ("owner/name", "v1"), ("owner/name", "v2"))
    assert marks == [3.0, 3.0]
    assert missing.startswith(f"HubUnreachableError: {server.endpoint}/owner/name cannot be reached: ")
    assert missing.endswith("; check the network, or the path if owner/name is one.")
    assert len(told.splitlines()) == 2 and "Using the last loaded model: " in told
    other, told = machine.load("owner/other", HF_HUB_OFFLINE="1")
    assert "owner/other cannot be reached: HF_HUB_OFFLINE is set" in other
    assert "unset HF_HUB_OFFLINE once to download it" in other
    assert told == ""


@pytest.mark.slow
def test_slow_or_broken_hub_counts_as_offline(machine, server):
    server.publish("owner/name", model_files(3.0))
    machine.load("owner/name")
    repository = server.repositories["owner/name"]
    for accident, reason in (
        ({"delay": 2.0}, "timed out"),
        ({"status": 503}, "503"),
        ({"page": b"<html>Welcome to the hotel</html>"}, ""),
        ({"page": b'{"id": "of another kind"}'}, "the answer names no commit"),
    ):
        vars(repository).update({"delay": 0.0, "status": None, "page": None} | accident)
        server.repositories["owner/new"] = repository
        old, new, told = machine.load("owner/name", "owner/new", HF_HUB_ETAG_TIMEOUT="1")
        assert old == 3.0 and "Using the last loaded model" in told and len(told.splitlines()) == 1
        assert "owner/new cannot be reached: " in new and reason in new and len(new.splitlines()) == 1


@pytest.mark.slow
def test_revisions(machine, server):
    first = server.publish("owner/name", model_files(1.0), "v1", "a/branch")
    server.publish("owner/name", model_files(2.0))
    wanted = [("owner/name", revision) for revision in ("v1", None, "a/branch", first, "main", "", "v3")]
    *marks, missing, told = machine.load(*wanted)
    assert (marks, told) == ([1.0, 2.0, 1.0, 1.0, 2.0, 2.0], "")
    assert missing == (
        f"FileNotFoundError: A revision must be a branch, tag or commit of {server.endpoint}/owner/name, not v3: "
        "check the name."
    )
    server.publish("owner/name", model_files(3.0))
    assert machine.load(*wanted[:2]) == (1.0, 3.0, "")
    server.stop()
    assert machine.load(("owner/name", first)) == (1.0, "")  # the hub is not even asked


# Another version of the conversion, for which superseded models need not be kept a while.
CONVERSION = """
from mlx_transformer.pretrained import cache
cache.CONVERSION_VERSION, cache.RECENT = {}, 0
"""


@pytest.mark.slow
def test_another_conversion_version_converts_again_and_deletes_the_superseded_model(machine, server):
    commit = server.publish("owner/name", model_files(3.0), "v1")
    models = ("owner/name", ("owner/name", "v1"))
    assert machine.load(*models, first=CONVERSION.format(7)) == (3.0, 3.0, "")
    assert machine.cached("owner--name") == [f"{commit}-v7"]
    assert machine.load("owner/name", first=CONVERSION.format(8)) == (3.0, "")
    assert machine.cached("owner--name") == [f"{commit}-v7", f"{commit}-v8"]  # v1 still refers to the older one
    assert machine.load(("owner/name", "v1"), first=CONVERSION.format(8)) == (3.0, "")
    assert machine.cached("owner--name") == [f"{commit}-v8"]
    # Offline, the downloaded files are converted again.
    assert machine.load("owner/name", first=CONVERSION.format(9), HF_HUB_OFFLINE="1") == (3.0, "")
    assert f"{commit}-v9.offline" in machine.cached("owner--name")


@pytest.mark.slow
def test_a_new_commit_supersedes_the_older_one(machine, server):
    server.publish("owner/name", model_files(1.0))
    machine.load("owner/name", first=CONVERSION.format(7))
    commit = server.publish("owner/name", model_files(2.0))
    assert machine.load("owner/name") == (2.0, "")
    assert len(machine.cached("owner--name")) == 2  # another process may be loading the older one
    command = ("-m", "mlx_transformer", "cache", "--prune")
    assert machine.run(*command)[1].startswith("Deleted 1 model, ")
    assert machine.cached("owner--name") == [f"{commit}-v{CONVERSION_VERSION}"]
    assert machine.run(*command)[1] == "Deleted 0 models, 0.0 MB.\n"


@pytest.mark.slow
def test_models_are_cached_in_the_type_of_the_gpu_and_exactly_for_another_type(machine, server):
    commit = server.publish("owner/name", model_files(1 / 3))
    folder = f"{commit}-v{CONVERSION_VERSION}"
    half, single = (mx.array(1 / 3, dtype).item() for dtype in (mx.float16, mx.float32))
    assert machine.load("owner/name", first=GPU) == (half, "")
    assert machine.cached("owner--name") == [f"{folder}.gpu"]
    (weights,) = (machine.kept / "owner--name").glob("*/model.safetensors")
    assert {array.dtype for array in mx.load(str(weights)).values()} == {mx.float16}
    assert machine.load("owner/name", first=GPU, dtype="float32") == (single, "")
    assert machine.cached("owner--name") == [folder, f"{folder}.gpu"]
    assert len(server.downloads("owner/name")) == len(model_files())  # converted again from the same files
    lines = machine.run("-m", "mlx_transformer", "cache")[1].splitlines()[:-1]
    expected = [" (main) float32", " (main, in the type of the GPU) float16"]
    assert sorted(line.split(commit[:8])[1] for line in lines) == expected
    assert machine.run("-m", "mlx_transformer", "cache", "--prune")[1] == "Deleted 0 models, 0.0 MB.\n"
    for path in [*machine.home.rglob("models--*"), machine.kept / "owner--name" / f"{folder}.gpu"]:
        shutil.rmtree(path)
    assert machine.load("owner/name", first=GPU, HF_HUB_OFFLINE="1") == (half, "")  # from the exact one
    assert machine.load("owner/name", HF_HUB_OFFLINE="1") == (single, "")


@pytest.mark.slow
def test_files_that_other_programs_downloaded_are_used_offline(machine, server):
    commit = server.publish("owner/name", model_files(3.0), "v1")
    download = "import huggingface_hub\nfor file in {}:\n    huggingface_hub.hf_hub_download({!r}, file)\n"
    machine.run("-c", download.format(list(model_files()), "owner/name"))
    server.publish("owner/empty", {"config.json": b"{}"})
    machine.run("-c", download.format(["config.json"], "owner/empty"))
    server.stop()
    here, at_commit, other, told = machine.load(
        "owner/name", ("owner/name", commit), ("owner/name", "v1"), HF_HUB_OFFLINE="1"
    )
    assert (here, at_commit, told) == (3.0, 3.0, "")
    assert other.startswith("HubUnreachableError: ")  # the download was of another revision
    empty, _ = machine.load("owner/empty", HF_HUB_OFFLINE="1")
    assert empty.startswith("HubUnreachableError: ") and "HF_HUB_OFFLINE is set" in empty


@pytest.mark.slow
def test_cache_is_listed_and_models_are_removed(machine, server, our_files):
    commit = server.publish("owner/name", model_files(3.0), "v1")
    server.publish("owner/ours", our_files)
    machine.load("owner/name", ("owner/name", "v1"), "owner/ours")
    run = functools.partial(machine.run, "-m", "mlx_transformer")
    ours, name, total = run("info", "--cache")[1].splitlines()
    assert "owner/name" in name and f"{commit[:8]} (main, v1)" in name
    assert ours.startswith("   0.0 MB  last used 2") and "owner/ours" in ours  # a link
    assert total.startswith("2 models, ") and total.endswith(str(machine.kept))
    assert run("cache")[1].splitlines() == [ours, name, total]
    facts = json.loads(run("info", "--cache", "--json")[1])["models"][1]
    assert (facts["repository"], facts["commit"], facts["revisions"]) == ("owner/name", commit, ["main", "v1"])
    assert facts["size"] == sum(path.stat().st_size for path in Path(facts["folder"]).iterdir())
    status, _, message = run("cache", "--remove", "owner/none")
    assert (status, message) == (
        1,
        "Error: The cache has no model owner/none: mlx-transformer cache lists those that it has.\n",
    )
    assert run("cache", "--remove", "owner/name")[1].startswith("Deleted 1 model, ")
    assert machine.cached("owner--name") == [] and machine.load("owner/name") == (3.0, "")


@pytest.mark.slow
def test_a_model_is_downloaded_by_its_command_and_removed_with_its_downloads(machine, server):
    commit = server.publish("owner/name", model_files(3.0))
    run = functools.partial(machine.run, "-m", "mlx_transformer", "models")
    name, _, _, folder, size, unit = run("download", "owner/name")[1].split()
    assert (name, size, unit) == ("owner/name", "(0.0", "MB).")
    assert Path(folder).parent == machine.kept / "owner--name" and Path(folder, "config.json").exists()
    assert f"owner/name {commit[:8]} (main) float32\n" in run("list", HF_HUB_OFFLINE="1")[1]
    downloads = machine.home / ".cache" / "huggingface" / "hub" / "models--owner--name"
    status, out, err = run("remove", "owner/name", "--yes", "--downloads", HF_HUB_OFFLINE="1")
    assert (status, err) == (0, "") and out.startswith("Deleted 1 model, 0.0 MB and downloads, 0.0 MB.")
    assert machine.cached("owner--name") == [] and not downloads.exists()
    status, _, err = run("download", "owner/none")
    assert (
        status == 1
        and err.startswith("Error: A model must be a path or owner/name on the hub")
        and err.count("\n") == 1
    )


@pytest.mark.slow
def test_interrupted_download(machine, server):
    server.publish("owner/name", model_files(3.0), accidents=["cut", "503", "cut"])
    result, _ = machine.load("owner/name")
    assert result.startswith("HubUnreachableError: ") and "503" in result and len(result.splitlines()) == 1
    assert machine.load("owner/name", HF_HUB_OFFLINE="1")[0].startswith("HubUnreachableError: ")
    assert machine.load("owner/name", first=FAILS) == (
        f"HubUnreachableError: {server.endpoint}/owner/name cannot be reached: Data processing error: no route; "
        "check the network, or the path if owner/name is one.",
        "",
    )
    assert machine.load("owner/name")[0] == 3.0  # the client itself tries again after the second cut
    assert server.downloads("owner/name").count("model.safetensors") == 4


@pytest.mark.slow
def test_killed_process_leaves_no_incomplete_model(machine, server):
    commit = server.publish("owner/name", model_files(3.0), trickle=20.0)
    process = machine.start("-c", LOAD, json.dumps([("owner/name", None)]))
    wait_until(lambda: "model.safetensors" in server.downloads("owner/name"))
    process.kill()
    process.communicate()
    server.repositories["owner/name"].trickle = 0.0
    status, out, _ = machine.run("-c", KILLED + LOAD, json.dumps([("owner/name", None)]))
    assert (status, out) == (-signal.SIGKILL, "")
    folder = machine.kept / "owner--name" / f"{commit}-v{CONVERSION_VERSION}"
    assert (folder.parent / f".{folder.name}.replacement").exists() and not folder.exists()
    assert machine.load("owner/name", HF_HUB_OFFLINE="1")[0].startswith("HubUnreachableError: ")
    assert machine.load("owner/name") == (3.0, "")
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", folder.name, "ref-main"]


@pytest.mark.slow
def test_loads_that_are_killed_at_any_access_to_the_cache(machine, server):
    """The next load finds no model or a whole one, and downloads nothing again."""
    commit = server.publish("owner/name", model_files(3.0))
    folder = machine.kept / "owner--name" / f"{commit}-v{CONVERSION_VERSION}"
    arguments = ("-c", "import mlx_transformer.pretrained.loading\n" + KILL_AT_ACCESS + LOAD, '[["owner/name", null]]')
    machine.load("owner/name")
    shutil.rmtree(machine.kept)
    _, accesses, _ = machine.run(*arguments, machine.kept, 0)
    for access in accesses_to_kill_at(accesses):
        shutil.rmtree(machine.kept)
        assert machine.run(*arguments, machine.kept, access)[0] == -signal.SIGKILL
        assert not folder.exists() or changed_files(folder) == []
        assert machine.load("owner/name") == (3.0, "") and changed_files(folder) == []
        assert sorted(path.name for path in folder.parent.glob("[!.]*")) == [folder.name, "ref-main"]
    assert server.downloads("owner/name").count("model.safetensors") == 1


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_concurrent_processes_convert_once(machine, server):
    server.publish("owner/name", model_files(3.0))
    arguments = ("-c", SLOW + LOAD, json.dumps([("owner/name", None)]))
    processes = [machine.start(*arguments) for _ in range(3)]
    assert [process.communicate(timeout=60) for process in processes] == [("3.0\n", "")] * 3
    assert (machine.work / "made").read_text() == "once\n"


@pytest.mark.slow
def test_private_and_gated_models_need_a_token(machine, server):
    server.publish("owner/private", model_files(3.0), private=True)
    server.publish("owner/gated", model_files(4.0), gated=True)
    models = ("owner/private", "owner/gated", "owner/none")
    *errors, told = machine.load(*models)
    for name, error in zip(models, errors, strict=True):
        if name == "owner/gated":
            assert error == (
                f"PermissionError: owner/gated is gated: ask for access at {server.endpoint}/owner/gated, then log in "
                "with `hf auth login` or set HF_TOKEN."
            )
        else:
            assert error == (
                f"FileNotFoundError: A model must be a path or owner/name on the hub: there is no path {name} "
                f"and no model {server.endpoint}/{name} that you can access; check the name, or if it is private log "
                "in with `hf auth login` or set HF_TOKEN."
            )
    assert told == ""
    server.publish("owner/forbidden", model_files(), forbidden=True)
    forbidden, _ = machine.load("owner/forbidden")
    wrong, _ = machine.load("owner/private", HF_TOKEN="hf_wrong")
    for error, name, reason in ((forbidden, "forbidden", "Not for you"), (wrong, "private", "Invalid credentials")):
        assert error.startswith(f"PermissionError: The hub denies access to {server.endpoint}/owner/{name}: ")
        assert reason in error and "check your token" in error and len(error.splitlines()) == 1
    private, gated, none, told = machine.load(*models, HF_TOKEN=TOKEN)
    assert (private, gated, told) == (3.0, 4.0, "") and none == errors[2]
    assert {token for _, path, token in server.requests if path.startswith("/cdn/")} == {None}


@pytest.mark.slow
def test_repositories_without_a_model_are_one_line_errors(machine, server):
    config = {"config.json": b"{}"}
    server.publish("owner/tf", config | {"tf_model.h5": b"", "onnx/model.safetensors": b""})
    server.publish("owner/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    server.publish("owner/many", config | {"a.pt": b"", "b.pt": b"", "training_args.bin": b""})
    server.publish("owner/gpt", model_files(model_type="gpt2"))
    server.publish("owner/broken", model_files() | {"model.safetensors": b"no"})
    server.publish("owner/shards", config | {f"model-0000{i}-of-00002.safetensors": b"" for i in (1, 2)})
    none, adapter, many, family, broken, shards, told = machine.load(
        *(f"owner/{name}" for name in ("tf", "adapter", "many", "gpt", "broken", "shards"))
    )
    assert shards.startswith("ValueError: Shards need their index, but owner/shards has model-00001-of-00002.")
    rule = "ValueError: A repository must hold weights that torch can read, but"
    assert none.startswith(f"{rule} tf_model.h5 of owner/tf belongs to an HDF5 file of Keras or TensorFlow: ")
    assert adapter.startswith(
        f"{rule} adapter_config.json of owner/adapter belongs to an adapter, no whole model: give"
    )
    assert many.startswith("ValueError: A repository must hold one checkpoint, but owner/many has a.pt, b.pt: download")
    assert "'gpt2' cannot be converted: it is a decoder without an encoder" in family
    assert broken.startswith("CheckpointError: ") and "model.safetensors" in broken
    assert told == "" and list(machine.kept.glob("*/[0-9a-f]*")) == []


@pytest.mark.slow
def test_other_kinds_of_weights(machine, server):
    tensors = bart_tensors() | {"final_logits_bias": mx.full((1, VOCAB), 5.0)}
    halves = (dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:]))
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {name: names[i] for i, half in enumerate(halves) for name in half}}
    files = dict(zip(names, map(safetensors, halves), strict=True))
    small = {name: data for name, data in model_files().items() if name.endswith(".json")}
    files |= small | {"model.safetensors.index.json": json.dumps(index).encode()}
    server.publish("owner/shards", files | {"pytorch_model.bin": torch_file(6.0), "model.fp16.safetensors": b""})
    server.publish("owner/bin", small | {"pytorch_model.bin": torch_file(6.0), "training_args.bin": b""})
    server.publish("owner/half", model_files(7.0, "model.fp16.safetensors"))
    assert machine.load("owner/shards", "owner/bin", "owner/half") == (5.0, 6.0, 7.0, "")
    assert server.downloads("owner/shards") == sorted(files)
    assert server.downloads("owner/bin") == ["config.json", "generation_config.json", "pytorch_model.bin"]


@pytest.fixture
def our_files(tmp_path):
    """Return the files of a model folder with a tokenizer."""
    tokenizer = mt.Tokenizer.train(["one two three"] * 9, ["un deux trois"] * 9, vocab_size=270)
    sizes = {"source_vocab_size": tokenizer.source_vocab_size, "target_vocab_size": tokenizer.target_vocab_size}
    ids = {"pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id, "start_id": tokenizer.start_id}
    old = SETTINGS["post_norm"]
    config = mt.ModelConfig(**sizes, **ids, dims=old.dims, encoder=old.encoder, decoder=old.decoder)
    model_folder.save(tmp_path / "ours", random_model(config), tokenizer)
    return {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}


@pytest.mark.slow
def test_model_folders_on_the_hub_are_used_directly(machine, server, our_files):
    commit = server.publish("owner/ours", our_files)
    assert machine.load("owner/ours") == ("ours", "")
    folder = machine.kept / "owner--ours" / f"{commit}-v{CONVERSION_VERSION}"
    assert folder.is_symlink() and machine.home.resolve() / ".cache" / "huggingface" in folder.resolve().parents
    assert machine.load("owner/ours", HF_HUB_OFFLINE="1") == ("ours", "")
    for path in folder.resolve().iterdir():
        path.unlink()
    folder.resolve().rmdir()
    assert machine.load("owner/ours", HF_HUB_OFFLINE="1")[0].startswith("HubUnreachableError: ")
    assert machine.load("owner/ours") == ("ours", "")


def test_paths_take_precedence_over_the_hub(machine, server, our_files):
    server.publish("owner/name", model_files(3.0))
    folder = machine.work / "owner" / "name"
    folder.mkdir(parents=True)
    for name, data in our_files.items():
        (folder / name).write_bytes(data)
    ours, of_path, no_name, revised, told = machine.load(
        "owner/name", "./owner/name", "./owner/none", ("owner/name", "v1")
    )
    assert (ours, of_path, told) == ("ours", "ours", "")
    assert no_name.startswith("FileNotFoundError: A model is a folder") and no_name.endswith("at owner/none.")
    assert revised == "ValueError: Only models of the hub have revisions, owner/name has none: leave out the revision."
    assert server.requests == []


@pytest.mark.slow
def test_full_disks(machine, server):
    server.publish("owner/name", model_files(3.0))
    error, _ = machine.load("owner/name", limit=4000)
    hf = machine.home / ".cache" / "huggingface" / "hub"
    assert error == f"OSError: owner/name cannot be downloaded to {hf}: File too large; set HF_HOME."
    assert machine.load("owner/name", MLX_TRANSFORMER_CACHE=str(machine.home / "elsewhere"))[0] == 3.0
    error, _ = machine.load("owner/name", limit=4000)
    assert error == (
        f"OSError: The model cache {machine.kept / 'owner--name'} cannot be used: File too large; free disk space, or "
        "set MLX_TRANSFORMER_CACHE."
    )
    assert [path.name for path in machine.kept.glob("*/*")] == [".lock"]


@pytest.mark.slow
def test_commands_accept_hub_models(machine, server, our_files):
    first = server.publish("owner/ours", our_files, "v1")
    server.publish("owner/ours", {"config.json": b"{}"})
    server.publish("owner/torch", model_files(3.0), "v1")
    server.publish("owner/torch", model_files(4.0))
    run = ("-m", "mlx_transformer")
    status, out, err = machine.run(*run, "generate", "--model", "owner/ours", "--revision", "v1", "one", "two")
    assert (status, len(out.splitlines()), err) == (0, 2, "")
    (machine.work / "test.tsv").write_text("one\tun\n")
    status, out, err = machine.run(
        *run, "evaluate", "--model", "owner/ours", "--revision", "v1", "--json", "test.tsv", HF_HUB_OFFLINE="1"
    )
    assert status == 0 and json.loads(out)["sentences"] == 1
    status, out, err = machine.run(*run, "info", "owner/ours", "--revision", "v1", "--json")
    assert status == 0 and Path(json.loads(out)["folder"]).name.startswith(first)
    status, out, err = machine.run(*run, "convert", "owner/torch", "made", "--revision", "v1")
    assert (status, out) == (0, "") and err.startswith("Model: made, ")
    assert mt.load_model(machine.work / "made").output_bias[0].item() == 3.0
    for command in (("info", "owner/none"), ("convert", "owner/none", "other"), ("generate", "-m", "owner/none", "a")):
        status, out, err = machine.run(*run, *command)
        assert (status, out) == (1, "") and err.startswith("Error: A model must be a path or owner/name on the hub")
        assert len(err.splitlines()) == 1


def test_hub_client_is_imported_only_for_hub_models(machine, our_files):
    (machine.work / "model").mkdir()
    for name, data in our_files.items():
        (machine.work / "model" / name).write_bytes(data)
    program = (
        "import sys\nimport mlx_transformer as mt, mlx_transformer.cli\nmt.load_model('model')\n"
        "print('huggingface_hub' in sys.modules)"
    )
    assert machine.run("-c", program)[:2] == (0, "False\n")


def test_cache_folder(monkeypatch, tmp_path):
    for name in ("MLX_TRANSFORMER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    assert cache.cache_folder() == Path("/nowhere/.cache/mlx_transformer")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache.cache_folder() == Path("/cache/mlx_transformer")
    monkeypatch.setenv("MLX_TRANSFORMER_CACHE", "~/models")
    assert cache.cache_folder() == Path("/nowhere/models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_TRANSFORMER_CACHE", "models")
    assert cache.cache_folder() == tmp_path / "models"


@pytest.mark.parametrize("name", ["owner/name", "Helsinki-NLP/opus-mt-en-de", "a/b", "_a/b.c_d-e", "a/" + "b" * 96])
def test_repository_ids(name):
    assert cache.is_repository_id(name)


@pytest.mark.parametrize(
    "name",
    ["name", "", "/", "a/", "/b", "a/b/c", "./b", "../b", "~/b", "a/b--c", "a/b..c", "a/b.git", "a/-b", "a/b.", "a/b\n"]
    + ["a/b c", "a\\b/c", "à/b", "a/" + "b" * 97, "hf://a/b", "a/b@v1"],
)
def test_invalid_repository_ids(name):
    assert not cache.is_repository_id(name)


@pytest.mark.parametrize(
    "chosen, left",
    [
        (["model.safetensors"], ["pytorch_model.bin", "model.safetensors.index.json"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
            ["model-00001-of-00002.safetensors", "optimizer.bin", "pytorch_model-1.bin"],
        ),
        (["pytorch_model.bin"], ["pytorch_model.fp16.bin", "model.fp16.safetensors"]),
        (["best.pt"], ["model.fp16.safetensors"]),
        (["model.fp16.safetensors"], ["pytorch_model.fp16.bin"]),
        (
            ["bpecodes", "dict.en.txt", "dict.fr.txt", "sentencepiece.bpe.model", "model.pt"],
            ["README.md", "optimizer.pt"],
        ),
        (["config.yaml", "src_vocab.txt", "best.ckpt"], ["logs/last.ckpt"]),
        (
            ["special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json", "model.safetensors"],
            ["trainer_state.json", "rust_model.ot", "tokenizer/tokenizer.json", "coreml/vocab.json", "a.gguf"],
        ),
        (["merges.txt", "source.spm", "target.spm", "target_vocab.json", "vocab.json", "model.bin"], ["tf_model.h5"]),
    ],
)
def test_choose_files(chosen, left):
    assert hub.choose_files("owner/name", [*left, *reversed(chosen)]) == chosen


def test_weights_of_models_that_cannot_be_converted_are_not_downloaded(machine, server):
    server.publish("owner/gpt2", model_files(model_type="gpt2"))
    server.publish("owner/bnb", model_files(quantization_config={"quant_method": "bitsandbytes"}))
    *messages, _ = machine.load("owner/gpt2", "owner/bnb")
    for message, reason in zip(messages, ("it is a decoder without", "as this one is by 'bitsandbytes'"), strict=True):
        assert message.startswith(("ValueError", "ConversionError")) and reason in message
    assert server.downloads("owner/gpt2") == server.downloads("owner/bnb") == ["config.json"]


@pytest.mark.parametrize(
    "names, words",
    [
        (
            ["config.json", "model.bin", "shared_vocabulary.json"],
            "shared_vocabulary.json of a/b belongs to a CTranslate2 m",
        ),
        (
            ["onnx/decoder_model.onnx", "onnx/encoder_model.onnx"],
            "belongs to an ONNX model: convert the torch checkpoint",
        ),
        (["saved_model.pb", "variables/variables.index"], "saved_model.pb of a/b belongs to a TensorFlow SavedModel"),
        (["tf_model.h5"], "an HDF5 file of Keras or TensorFlow: use the model's torch weights"),
        (["flax_model.msgpack"], "a Flax model"),
        (["model-q8.gguf"], "a model of llama.cpp"),
        (["weights.npz", "config.json"], "a file of NumPy arrays"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "an adapter, no whole model: give its base",
        ),
        (["optimizer.pt", "scheduler.pt", "training_args.bin"], "the state of a training, without weights"),
        (["weights.zip"], "a zip archive"),
    ],
)
def test_repositories_of_other_formats_are_named(names, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        hub.choose_files("a/b", [*names, "README.md", ".gitattributes"])


def test_files_of_other_formats_beside_the_weights_do_not_matter():
    others = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/model.onnx", "optimizer.pt"]
    assert hub.choose_files("a/b", [*others, "pytorch_model.bin"]) == ["pytorch_model.bin"]
    assert hub.choose_files("a/b", [*others, "mine.pt"]) == ["mine.pt"]


def test_weights_are_chosen_in_the_order_of_the_checkpoint_reader():
    preferred = list(checkpoint_module.PREFERRED_FILES)
    for first, expected in enumerate(preferred):
        assert hub.choose_files("owner/name", preferred[first:][::-1])[-1] == expected


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, TimeoutError, errors.HTTPError])
def test_passwords_of_the_hub_are_never_shown(monkeypatch, kind):
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@localhost:9")
    error = kind("cannot reach http://user:secret@localhost:9/api?b=1")
    assert "http://***@localhost:9/owner/name cannot be reached: cannot reach http://***@localhost:9/api?b=1" in str(
        hub.describe_hub_error(error, "owner/name", None)
    )


def test_passwords_are_removed_from_the_log_of_huggingface_hub(caplog):
    logging.getLogger("huggingface_hub.utils._http").warning("error thrown while requesting GET http://u:secret@host/a")
    assert caplog.messages == ["error thrown while requesting GET http://***@host/a"]


@pytest.mark.parametrize(
    "endpoint", ["user:secret@host", "https://user:sec/ret@host", "https://user:secret@", "ftp://h"]
)
def test_a_bad_endpoint_is_named_without_its_password(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ValueError, match="^HF_ENDPOINT must be a URL such as https://huggingface.co; ") as caught:
        hub.resolve_revision("owner/name", None)
    assert "sec" not in str(caught.value) and "ftp" not in str(caught.value)


def test_downloads_need_a_home_folder(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(OSError, match="you have no home folder: set HF_HOME and MLX_TRANSFORMER_CACHE"):
        hub.resolve_revision("owner/name", None)
