"""The bytes of a file by position, without mapping it: a mapped file that is truncated meanwhile kills the process."""

import os
import weakref
from pathlib import Path

from mlx_transformer.weights.formats.tensors import CheckpointError

BLOCK_SIZE = 2**16  # bytes that are read at once, so that small parts need few system calls


class FileBytes:
    """The bytes of an open file: slices are read when they are asked for, `len` is the size when it was opened.

    Attributes:
        close: Closes the file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._descriptor)  # also called when the object is freed
        self._size = os.fstat(self._descriptor).st_size
        self._block, self._start = b"", 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        if stop - start > BLOCK_SIZE:
            return self._read(start, stop)
        if not self._start <= start <= stop <= self._start + len(self._block):
            self._block, self._start = self._read(start, min(start + BLOCK_SIZE, self._size)), start
        return self._block[start - self._start : max(stop, start) - self._start]

    def _read(self, start: int, stop: int) -> bytes:
        content = os.pread(self._descriptor, stop - start, start)
        while len(content) < stop - start:  # the system reads at most 2 GiB at once
            more = os.pread(self._descriptor, stop - start - len(content), start + len(content))
            if not more:
                raise CheckpointError(
                    f"a checkpoint must not change while it is read, this one had {self._size} bytes and was truncated",
                    "try again when it is complete",
                )
            content += more
        return content
