"""Reads randomly damaged files, and counts what happens."""

import collections
import os
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path

MAX_SECONDS = 5  # of processor time for one file
MAX_MEGABYTES = 1000  # by which one file may raise the peak memory
MAX_LINE = 300  # characters of an error, besides the path of the folder
OUTCOMES = ("loaded", "refused", "unclear lines", "tracebacks", "panics", "over 5 s", "over 1 GB")


def peak():
    """Return the peak memory of this process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def read_damaged_files(files, count, chance):
    """Read files with random damage; return the number of each outcome, and a word about each fault.

    `files` has a folder `path`, `damage(chance)`, which writes damaged files into it, and `read()`. The files of the
    first 50 faults are kept in the folder that MLX_TRANSFORMER_FUZZ_KEEP names.
    """
    outcomes, faults = collections.Counter(dict.fromkeys(OUTCOMES, 0)), []
    for _ in range(count):
        files.damage(chance)
        start, memory = time.process_time(), peak()
        outcome, words = _read(files)
        seconds, megabytes = time.process_time() - start, peak() - memory
        outcomes[outcome] += 1
        if seconds > MAX_SECONDS:
            outcomes["over 5 s"] += 1
            words = f"{seconds:.1f} s; {words}"
        if megabytes > MAX_MEGABYTES:
            outcomes["over 1 GB"] += 1
            words = f"{megabytes:.0f} MB; {words}"
        if words:
            faults.append(words)
            keep = os.environ.get("MLX_TRANSFORMER_FUZZ_KEEP")
            if keep and len(faults) < 50:
                shutil.copytree(files.path, Path(keep) / f"{files.path.name}-{len(faults)}", dirs_exist_ok=True)
    return outcomes, faults


def _read(files):
    """Read the files once; return the outcome, and what is wrong with it, if anything."""
    try:
        files.read()
    except (ValueError, OSError) as error:
        words = fault_of_line(error, files.path)
        return ("unclear lines", f"{words}: {error!r:.500}") if words else ("refused", None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (panics are no Exception)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{error!r:.500} in {frame.name} of {frame.filename}, line {frame.lineno}"
        return "panics" if type(error).__name__ == "PanicException" else "tracebacks", words
    return "loaded", None


def fault_of_line(error, folder):
    """Return what is wrong with the message of an error; None if nothing."""
    line = str(error).replace(str(folder), "")
    if isinstance(error, UnicodeError):
        return "a message of Python"
    if "\n" in line or not line.isprintable():
        return "not one printable line"
    return f"{len(line)} characters" if len(line) > MAX_LINE else None
