"""Files made to harm: each is refused in one line or loads with nothing run, touched or filled; then random damage."""

import collections
import json
import os
import random
import resource
import struct
import sys
import time

import mlx.core as mx
import pytest
from support.checkpoint_files import Call, Name, Pid, legacy_file, numbers, pickled, safetensors_file, tensor, zip_file
from support.hostile_files import LEGACIES, OTHERS, PICKLES, SAFE, ZIPS, floats

from mlx_transformer.storage.files import MAX_BYTES
from mlx_transformer.weights import source_config
from mlx_transformer.weights.formats import unpickler
from mlx_transformer.weights.formats.checkpoint import CheckpointError, PickledObject, read_checkpoint, to_plain

FUZZ = int(os.environ.get("MLX_TRANSFORMER_FUZZ", "2000"))
SECONDS = 20  # of processor time for one file; the steps of a pickle bound it
MEGABYTES = 400
STORED = {"0": numbers()}

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = (
    "builtins.id",
    "object.__getattr__",
    "os.listdir",
    "os.scandir",
    "mmap.__new__",
    "sys._getframe",
    "gc.",
    "time.sleep",
)
watch = {"folder": None, "seen": []}


def audit(event, arguments):
    if watch["folder"] is None or event.startswith(HARMLESS):
        return
    if event == "open":
        path, _, flags = arguments
        inside = isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(watch["folder"])
        if inside and not (flags or 0) & WRITING:
            return
    watch["seen"].append((event, str(arguments)[:200]))


@pytest.fixture(scope="module", autouse=True)
def audited():
    """Hooks cannot be removed again, so one hook is added once and looks away outside of `attempt`."""
    sys.addaudithook(audit)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def attempt(path):
    """Read all of a checkpoint under watch: what is refused is returned, all else must load without a deed."""
    before = snapshot(path)
    watch.update(folder=os.fspath(path if path.is_dir() else path.parent), seen=[])
    start = time.process_time()
    try:
        with read_checkpoint(path) as checkpoint:
            mx.eval([checkpoint.load(name) for name in checkpoint.tensors])
            outcome = checkpoint.extras
            try:
                outcome = to_plain(outcome)
            except CheckpointError as error:
                assert "nested at most" in str(error)
    except CheckpointError as error:
        outcome = error
    finally:
        watch["folder"] = None
    assert watch["seen"] == []
    assert time.process_time() - start < SECONDS
    assert snapshot(path) == before
    if isinstance(outcome, CheckpointError):
        message = str(outcome)
        assert "\n" not in message and message.isprintable() and len(message) < 1200
        assert message.startswith(str(path.parent)) and message.endswith(".")
    return outcome


def snapshot(path):
    root = path.parent.parent
    return sorted((os.fspath(file), file.stat().st_mtime_ns) for file in root.rglob("*"))


def place(folder, content, name="model.pt"):
    path = folder / "files" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory, audited):
    """Whatever the libraries load on first use is loaded before anything is watched."""
    folder = tmp_path_factory.mktemp("warm")
    for number, content in enumerate(valid_files()):
        with read_checkpoint(place(folder, content, f"{number}.pt")) as checkpoint:
            mx.eval([checkpoint.load(name) for name in checkpoint.tensors])
            to_plain(checkpoint.extras)
    with pytest.raises(CheckpointError):
        read_checkpoint(place(folder, b"{"))


def peak():
    """The most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def check(folder, content, words, name="model.pt"):
    before = peak()
    outcome = attempt(place(folder, content, name))
    assert peak() - before < MEGABYTES
    if words is None:
        assert not isinstance(outcome, Exception), outcome
    else:
        assert isinstance(outcome, CheckpointError)
        with pytest.raises(CheckpointError, match=words):
            raise outcome


@pytest.mark.parametrize("kind", ("zip", "legacy"))
@pytest.mark.parametrize("name", PICKLES)
def test_pickles(folder, name, kind):
    root, words = PICKLES[name]
    payload = {"0": b"\xff" * 24} if "NaN" in name else STORED
    if kind == "legacy" and b"Storage" not in (root if isinstance(root, bytes) else pickled(root)):
        payload = {}
    make = zip_file if kind == "zip" else legacy_file
    check(folder, make(root, payload), words)


@pytest.mark.parametrize("name", ZIPS)
def test_archives(folder, name):
    check(folder, *ZIPS[name])


@pytest.mark.parametrize("name", LEGACIES)
def test_legacy_files(folder, name):
    check(folder, *LEGACIES[name])


@pytest.mark.parametrize("name", SAFE)
def test_safetensors(folder, name):
    check(folder, *SAFE[name], "model.safetensors")


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds(folder, name):
    check(folder, *OTHERS[name])


def test_there_are_enough_cases():
    assert len(PICKLES) + len(ZIPS) + len(LEGACIES) + len(SAFE) + len(OTHERS) >= 200


def test_calls_become_stubs(folder):
    outcome = attempt(place(folder, zip_file({"a": tensor(), "x": Call("os", "system", ("touch CANARY",))}, STORED)))
    assert isinstance(outcome["x"], PickledObject)
    assert (outcome["x"].name, outcome["x"].args) == ("os.system", ("touch CANARY",))


def test_a_pickle_of_too_many_steps(folder, monkeypatch):
    monkeypatch.setattr(unpickler, "MAX_STEPS", 5000)
    for opcodes in (b"K\1" * 6000, b"]" * 700, b"N" + b"\x94" * 1500, b"X\xff\xff\1\0" + b"a" * 0x1FFFF):
        path = place(folder, zip_file(b"\x80\x04" + opcodes + b".", {}))
        assert "5000 steps" in str(attempt(path))


def index(weight_map):
    return json.dumps({"weight_map": weight_map}).encode()


SHARD = safetensors_file({"a": floats(0, 24)}, numbers())
INDEXES = {
    "a shard up the folders": (index({"a": "../outside.safetensors"}), "plain name"),
    "an absolute shard": (index({"a": "/etc/outside.safetensors"}), "plain name"),
    "a shard in a folder": (index({"a": "sub/outside.safetensors"}), "plain name"),
    "a shard behind a backslash": (index({"a": "..\\outside.safetensors"}), "plain name"),
    "a shard on a drive": (index({"a": "C:outside.safetensors"}), "plain name"),
    "a shard with a null": (index({"a": "a\0.safetensors"}), "plain name"),
    "a shard of another kind": (index({"a": "passwd"}), "plain name"),
    "a shard that is a number": (index({"a": 3}), "plain name"),
    "a shard that is the index": (index({"a": "model.safetensors.index.json"}), "plain name"),
    "a shard that is missing": (index({"a": "gone.safetensors"}), "beside its index"),
    "a shard that is a folder": (index({"a": "sub.bin"}), "beside its index"),
    "a shard without its tensor": (index({"a": "one.safetensors", "b": "one.safetensors"}), "'b' is not here"),
    "a tensor in two shards": (index({"a": "one.safetensors", "c": "two.safetensors"}), "in two"),
    "a map that is a list": (index(["one.safetensors"]), "must have a weight_map"),
    "a map of nothing": (index({}), "must have a weight_map"),
    "no map": (b"{}", "must have a weight_map"),
    "a list": (b"[]", "must be a JSON object"),
    "no JSON": (b"\xff", "must be JSON"),
    "a name twice": (b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "stands twice"),
    "too many shards": (index({str(n): f"{n}.bin" for n in range(2000)}), "at most 1000 shards"),
    "a deep one": (b'{"weight_map": ' + b"[" * 100_000, "must be JSON"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes(folder, name):
    content, words = INDEXES[name]
    place(folder, SHARD, "one.safetensors")
    place(folder, safetensors_file({"a": floats(0, 24), "c": floats(24, 48)}, numbers(12)), "two.safetensors")
    (folder / "outside.safetensors").write_bytes(SHARD)
    (folder / "files" / "sub").mkdir()
    (folder / "files" / "sub.bin").mkdir()
    (folder / "files" / "sub" / "outside.safetensors").write_bytes(SHARD)
    check(folder, content, words, "model.safetensors.index.json")


def test_folders_that_are_refused(folder):
    files = folder / "files"
    files.mkdir()
    with pytest.raises(CheckpointError, match="must have a checkpoint"):
        read_checkpoint(files)
    place(folder, SHARD, "adapter_model.safetensors")
    for path in (files, files / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match="adapter"):
            read_checkpoint(path)
    place(folder, SHARD, "one.safetensors")
    assert read_checkpoint(files).files == [files / "one.safetensors"]
    place(folder, SHARD, "two.bin")
    with pytest.raises(CheckpointError, match="'one.safetensors', 'two.bin'; give the path of one file"):
        read_checkpoint(files)
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_checkpoint(files / "gone")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting(folder):
    os.mkfifo(folder / "model.pt")
    with pytest.raises(CheckpointError, match="must be a file"):
        read_checkpoint(folder / "model.pt")


def test_settings_that_are_nested_too_deep(folder):
    value = []
    for _ in range(200):
        value = [value]
    with pytest.raises(CheckpointError, match="at most 100 deep"):
        to_plain(value)


def shared_sections():
    section = {"a": 1}
    for _ in range(60):
        section = {"a": section, "b": section}
    return section


def endless_section():
    section = {}
    section["a"] = section
    return section


@pytest.mark.parametrize("make", [shared_sections, endless_section, lambda: {"a" * 600: {"b" * 600: 1}}])
def test_sections_that_hold_one_another(make):
    with pytest.raises(ValueError, match="at most 10000 options with names of at most 1000 letters"):
        source_config.training_options({"args": make()})


LEVELS = "".join(f"l{n}: &l{n} {{x: *l{n - 1}, y: *l{n - 1}}}\n" for n in range(1, 60))
YAMLS = {
    "shared sections": ("l0: &l0 {a: 1}\n" + LEVELS + "model: *l59", "at most 10000 options"),
    "a section in itself": ("model: &m {a: *m}", "at most 10000 options"),
    "merged sections": ("model: &m {a: 1}\nb: {<<: [*m, *m]}", "must be YAML"),
    "deep lists": ("model: " + "[" * 100_000, "must be YAML"),
    "a long number": ("model: " + "1" * 6000, "must be YAML"),
    "no date": ("model: !!timestamp tomorrow", "must be YAML"),
    "no number": ("model: !!int ''", "must be YAML"),
    "many bytes": (" " * (source_config.MAX_YAML + 1), f"at most {source_config.MAX_YAML} bytes"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_options_in_yaml(tmp_path, name):
    content, words = YAMLS[name]
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        source_config.read_yaml(tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_that_are_far_too_large(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=f"at most {MAX_BYTES} bytes: .*config.json"):
        source_config.read_config(tmp_path)


# Random damage.


def valid_files():
    """A file of each kind, with every part that a reader looks at."""
    untyped = Pid(("storage", Name("torch.storage", "UntypedStorage"), "1", "cpu", 24))
    hooks = Call("collections", "OrderedDict")
    config = Call("omegaconf.dictconfig", "DictConfig", (), {"_content": {"dims": 512}})
    state = {
        "a": tensor(),
        "b": tensor(shape=(3, 2), strides=(1, 3), numel=6),
        "c": Call("torch._utils", "_rebuild_parameter", (tensor(shape=(2,), offset=4, numel=6), True, hooks)),
        "d": Call(
            "torch._utils", "_rebuild_tensor_v3", (untyped, 0, (2, 3), (3, 1), False, hooks, Name("torch", "float32"))
        ),
    }
    metadata = {"_metadata": {"": {"version": 1}}}
    root = {
        "model": Call("collections", "OrderedDict", ([list(pair) for pair in state.items()],), metadata),
        "args": Call("argparse", "Namespace", (), {"heads": 8, "rate": 0.5, "names": ["x", "y"], "big": 2**70}),
        "cfg": config,
    }
    module = Call(
        "torch.nn", "Linear", (), {"_parameters": {"weight": tensor()}, "_buffers": {}, "_modules": {"x": None}}
    )
    both = {"0": numbers(), "1": numbers()}
    yield zip_file(root, both, order="little", members=[("archive/.data/serialization_id", "0" * 40)])
    yield zip_file(root, both, method=8)
    yield zip_file(module, STORED)
    legacy = {**state, "d": tensor("1", shape=(2,), numel=6, view=(("2", 1, 4),))}
    yield legacy_file({**root, "model": legacy}, both)
    header = {
        "__metadata__": {"format": "pt"},
        "a": floats(0, 24),
        "b": {**floats(24, 36), "dtype": "BF16", "shape": [2, 3]},
    }
    yield safetensors_file(header, numbers(9))


NUMBERS = (0, 1, 2, 5, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def damage(content, others, chance):
    """A file with one to four things wrong with it."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        size = max(len(data), 1)
        at, length = chance.randrange(size), chance.randrange(1, 40)
        kind = chance.randrange(9)
        if kind == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[at] = chance.randrange(256)
        elif kind == 2:
            del data[chance.choice((at, size - length if size > length else 0)) :]
        elif kind == 3:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[at : at + chance.choice((0, length))] = other[start : start + length]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
        elif kind == 6:
            code = chance.choice(("<B", "<H", "<I", "<Q"))
            field = struct.pack(code, chance.choice(NUMBERS) % 256 ** struct.calcsize(code))
            data[at : at + len(field)] = field
        elif kind == 7:
            digits = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
            if digits:
                data[chance.choice(digits)] = chance.choice(b"0123456789-.e")
        else:
            data[at : at + 1] = bytes([chance.choice(b"().}]{[0KMJXcqhrR\x81\x85\x86\x87\x92\x93\x94QbsuaetoiNIdlp")])
    return bytes(data)


def wrapped(content, chance):
    """Damage inside, put into a whole archive again: what a checksum or a directory would not betray."""
    root, storages = chance.choice(
        (
            ({"model": {"a": tensor(), "b": tensor(shape=(2,), offset=3, numel=6)}, "args": {"heads": 8}}, STORED),
            (Call("x", "Y", (), {"_parameters": {"w": tensor()}, "_buffers": {}, "_modules": {"n": None}}), STORED),
        )
    )
    body = damage(pickled(root), [content], chance)
    if chance.random() < 0.5:
        return zip_file(body, storages, method=chance.choice((0, 8)))
    return legacy_file(body, storages)


def fuzz(folder, count, seed):
    """Read that many damaged files; how many loaded, and how many were refused for which reason."""
    chance = random.Random(seed)
    files = list(valid_files())
    outcomes = collections.Counter()
    path = folder / "files" / "model.pt"
    path.parent.mkdir(exist_ok=True)
    for _ in range(count):
        content = chance.choice(files)
        content = wrapped(content, chance) if chance.random() < 0.4 else damage(content, files, chance)
        path.write_bytes(content)
        outcome = attempt(path)
        outcomes["refused" if isinstance(outcome, CheckpointError) else "loaded"] += 1
    return outcomes


def test_random_damage(folder):
    before = peak()
    outcomes = fuzz(folder, FUZZ, 11)
    print(f"{FUZZ} damaged files: {dict(outcomes)}, {peak() - before:.0f} MB more at the peak")  # shown with -s
    assert sum(outcomes.values()) == FUZZ
    assert min(outcomes["loaded"], outcomes["refused"]) > FUZZ // 20
    assert peak() - before < MEGABYTES


def test_the_watch_sees_what_it_must(folder):
    """Were code run, the tests above would fail."""
    watch.update(folder=os.fspath(folder), seen=[])
    try:
        os.system("true")
        exec("1")
        open(folder / "new", "w").close()
        open(__file__).close()
    finally:
        watch["folder"] = None
    events = [event for event, _ in watch["seen"]]
    assert "os.system" in events and "exec" in events and events.count("open") == 2
