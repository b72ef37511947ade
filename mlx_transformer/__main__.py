"""The entry point of `mlx-transformer` and `python -m mlx_transformer`; it handles Ctrl-C before other imports."""

import signal
from types import FrameType

RETRY_AFTER = 0.02  # seconds


def main() -> None:
    """Run the command line; Ctrl-C ends it with one line and status 130."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell script
        run()
        return
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would print a traceback while it exits


def run() -> None:
    """Import the command line and run it."""
    from mlx_transformer.cli import main as command_line

    command_line(prog_name="mlx-transformer")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt where it is handled: as soon as a command runs, and no import, which may replace it."""
    if is_interruptible(frame):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, RETRY_AFTER)


def is_interruptible(frame: FrameType | None) -> bool:
    """Whether a frame belongs to a running command, but not to an import."""
    is_running = False
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return False
        is_running = is_running or frame.f_code.co_name == "invoke"  # the method of cli.CommandLine
        frame = frame.f_back
    return is_running


if __name__ == "__main__":
    main()
