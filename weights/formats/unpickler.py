"""Reads pickles as data, with an interpreter that imports nothing and calls only the functions in CALLS.

Unknown classes and functions become inert PickledObjects. The standard library's disassembler parses the opcodes.
"""

import codecs
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mlx_transformer.weights.formats.file_bytes import FileBytes
from mlx_transformer.weights.formats.pickled_objects import (
    CALLS,
    PickledObject,
    make_dict,
    make_set,
    make_storage,
    to_key,
    view_storage,
)
from mlx_transformer.weights.formats.tensors import CheckpointError, Storage, Tensor, quote

# Every opcode costs one step, and its result more by its size. A dictionary of 250,000 words costs 2 million steps.
MAX_STEPS = 10_000_000
FREE_STEPS, STEPS_PER_BYTE = 2**20, 2  # of a small file, which may unpack to 100 times its size
COST_OF_OBJECT, COST_OF_MEMO, COST_OF_TENSOR = 8, 3, 64
BYTES_PER_STEP = 16
MAX_TEXT, MAX_LINE = 2**26, 2**20

LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
STRINGS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))
PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# The disassembler's codecs, loaded here so that nothing is imported while a file is read.
CODECS = [codecs.lookup(name) for name in ("ascii", "latin-1", "utf-8", "raw-unicode-escape", "unicode-escape")]
BUILTINS = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in Python 2


class _PickleReader:
    """A file object for the disassembler that limits the size of one read."""

    def __init__(self, data: bytes | FileBytes, position: int) -> None:
        self.data = data
        self.position = position

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if size > MAX_TEXT:
            raise CheckpointError(f"a string in a pickle must have at most {MAX_TEXT} bytes, not {size}")
        part = self.data[self.position : self.position + size]
        self.position += len(part)
        return part

    def readline(self) -> bytes:
        size = 2**10  # most lines are short, and a slice is a copy
        while (end := self.data[self.position : self.position + size].find(b"\n")) < 0 and size < MAX_LINE:
            size *= 2**5
        return self.read(end + 1 or MAX_LINE)


def read_pickle(
    data: bytes | FileBytes, start: int = 0, path: Path | None = None, stored_size: int | None = None
) -> tuple[Any, dict[str, Storage], int]:
    """Read the pickle that begins at `start`.

    Args:
        data: The bytes that contain the pickle.
        start: Where it begins.
        path: The file, for its storages.
        stored_size: The bytes that it takes in its file, if it is compressed there.

    Returns:
        The object, made of plain containers, Tensors and PickledObjects; its storages by key; the end of the pickle.

    Raises:
        CheckpointError: If it is damaged or takes too many steps.
    """
    stored_size = len(data) if stored_size is None else stored_size
    machine = _PickleMachine(path, min(MAX_STEPS, FREE_STEPS + STEPS_PER_BYTE * stored_size))
    reader = _PickleReader(data, start)
    try:
        return machine.run(reader), machine.storages, reader.position
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, DeprecationWarning) as error:
        raise CheckpointError(f"a pickle must be complete, but reading failed: {quote(str(error))}") from None


class _PickleMachine:
    """Interprets the opcodes of one pickle: its stack, marks and memo."""

    def __init__(self, path: Path | None, max_steps: int) -> None:
        self.path, self.max_steps = path, max_steps
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stack below each mark
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.texts: dict[Any, Any] = {}  # equal strings become one object, so that comparing keys takes no time
        self.steps = 0

    def run(self, file: _PickleReader) -> Any:
        for opcode, value, _ in pickletools.genops(cast(Any, file)):
            name, argument = opcode.name, cast(Any, value)
            self.spend(1)
            if name in LITERALS:
                self.push_literal(argument)
            elif name in PUTS:
                self.put(len(self.memo) if name == "MEMOIZE" else argument)
            elif name in GETS:
                self.stack.append(self.memo[argument])
            elif name in OPCODES:
                OPCODES[name](self, argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in STRINGS:
                self.push_literal(_python2_text(argument))
            elif name == "STOP":
                return self.stack.pop()
            else:
                raise CheckpointError(f"a pickle must not use the opcode {name}")
        raise CheckpointError("a pickle must end with STOP")

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > self.max_steps:
            raise CheckpointError(
                f"a pickle of this size must take at most {self.max_steps} steps to read",
                "save only the state dict, with torch.save(model.state_dict(), ...)",
            )

    def push(self, value: Any, cost: int = COST_OF_OBJECT) -> None:
        self.spend(cost)
        self.stack.append(value)

    def push_literal(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > 8192:
            raise CheckpointError("a number in a pickle must have at most 8192 bits")
        self.spend(_cost_of_copy(value))
        self.stack.append(self.texts.setdefault(value, value) if type(value) is str else value)

    def put(self, index: int) -> None:
        self.spend(COST_OF_MEMO)
        self.memo[index] = self.stack[-1]

    def pop_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def drop_mark(self, _: Any) -> None:
        self.pop_mark()

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []
        self.spend(COST_OF_OBJECT)

    def pop(self, _: Any) -> None:
        if self.stack:
            del self.stack[-1]
        else:
            self.pop_mark()

    def push_tuple(self, count: int | None) -> None:
        if count is None:
            return self.push(tuple(self.pop_mark()))
        if len(self.stack) < count:
            raise CheckpointError(f"a pickle must have {count} values for a tuple, not {len(self.stack)}")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return self.push(values)

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, PickledObject):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(to_key(value) for value in values)
        else:
            raise CheckpointError(f"a pickle must append to a list, not to {type(target).__name__}")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.mapping if isinstance(target, PickledObject) else target
        if not isinstance(entries, dict) or len(values) % 2:
            raise CheckpointError(f"a pickle must set pairs in a dict, not {len(values)} in {type(entries).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            entries[to_key(key)] = value

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def push_global(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        self.push(PickledObject(f"{BUILTINS.get(module, module)}.{attribute}"))

    def push_stack_global(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(attribute) is not str:
            raise CheckpointError("a pickle must name a class by two strings")
        self.push_global(f"{module} {attribute}")

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, PickledObject) or not isinstance(arguments, tuple):
            raise CheckpointError(f"a pickle must call a class with a tuple, not {type(function).__name__}")
        allowed = CALLS.get(function.name) if function.args is None else None
        if allowed is None:
            return self.push(PickledObject(function.name, arguments))
        self.spend(sum(map(_cost_of_copy, arguments)))
        value = allowed(*arguments)
        return self.push(value, COST_OF_TENSOR if isinstance(value, Tensor) else COST_OF_OBJECT)

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def call_newobj_ex(self, _: Any) -> None:
        names, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(names, dict) or not isinstance(arguments, tuple):
            raise CheckpointError("a pickle must call a class with a tuple and a dict")
        self.call(function, (*arguments, names) if names else arguments)

    def call_obj(self, _: Any) -> None:
        function, *arguments = self.pop_mark()
        self.call(function, tuple(arguments))

    def call_inst(self, name: str) -> None:
        arguments = tuple(self.pop_mark())
        self.push_global(name)
        self.call(self.stack.pop(), arguments)

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, PickledObject):
            # The state of an object with slots is a pair of dicts, either of which may be None.
            pair = isinstance(state, tuple) and len(state) == 2 and all(isinstance(s, dict | None) for s in state)
            for part in state if pair else (state,):
                entries = part if isinstance(part, dict) else {} if part is None else {"": part}
                self.spend(len(entries))
                target.state.update(entries)
        # _metadata of an OrderedDict and attributes of a tensor are dropped.
        elif not isinstance(target, dict | Tensor):
            raise CheckpointError(f"a pickle must set the state of an object, not of {type(target).__name__}")

    def push_persistent(self, _: Any) -> None:
        pid = self.stack.pop()
        storage = make_storage(pid, self.path)
        if isinstance(storage, Storage):
            if self.storages.setdefault(storage.key, storage) != storage:
                raise CheckpointError(f"storage {quote(storage.key)} must have one size and type throughout")
            if len(pid) == 6 and pid[5] is not None:
                storage = view_storage(storage, pid[5])
        self.push(storage, COST_OF_TENSOR)


def _python2_text(text: str) -> str:
    """Decode a byte string of Python 2, which the disassembler returns as latin-1, as UTF-8 if it is valid."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _cost_of_copy(value: Any) -> int:
    if isinstance(value, str | bytes | bytearray):
        return len(value) // BYTES_PER_STEP
    return len(value) if isinstance(value, list | tuple | dict | set) else 0


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


OPCODES: dict[str, Callable[[_PickleMachine, Any], None]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, length: None,
    "MARK": _PickleMachine.mark,
    "POP": _PickleMachine.pop,
    "POP_MARK": _PickleMachine.drop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push_tuple(None),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "DICT": lambda machine, _: machine.push(make_dict(_pairs(machine.pop_mark()))),
    "FROZENSET": lambda machine, _: machine.push(make_set(machine.pop_mark())),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEM": _PickleMachine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "GLOBAL": _PickleMachine.push_global,
    "STACK_GLOBAL": _PickleMachine.push_stack_global,
    "REDUCE": _PickleMachine.reduce,
    "NEWOBJ": _PickleMachine.reduce,
    "NEWOBJ_EX": _PickleMachine.call_newobj_ex,
    "OBJ": _PickleMachine.call_obj,
    "INST": _PickleMachine.call_inst,
    "BUILD": _PickleMachine.build,
    "BINPERSID": _PickleMachine.push_persistent,
}
