"""Programs that kill themselves at the n-th access to the files of a folder."""

import json
import os
import random
import signal

KILLS = int(os.environ.get("KILLS", "6"))  # of each test that kills; each takes a second or two

# Put between the imports of a program and its work, with the folder and n as its last arguments; n = 0 only lists them.
KILL_AT_ACCESS = """
import atexit, json, os, signal, sys
accesses = []
def kill_at_access(event, arguments):
    if event.startswith(("os.", "open")) and any(sys.argv[-2] in str(argument) for argument in arguments):
        accesses.append(event)
        if len(accesses) == int(sys.argv[-1]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill_at_access)
atexit.register(lambda: print(json.dumps(accesses)))
"""


def accesses_to_kill_at(output):
    """Choose numbers of the accesses that a program has listed: those that rename, and random ones."""
    accesses = json.loads(output.splitlines()[-1])
    renames = [number for number, event in enumerate(accesses, 1) if event == "os.rename"]
    others = [number for number in range(1, len(accesses) + 1) if number not in renames]
    random.Random(0).shuffle(others)
    return (renames + others * KILLS)[:KILLS]


def is_killed(process):
    """Whether a process was killed; one that was not has failed."""
    return process.returncode == -signal.SIGKILL
