"""The command `serve`: a local server with the APIs of LibreTranslate and OpenAI."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.completion import complete_model
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.options import dtype_option
from mlx_transformer.cli.progress import activity
from mlx_transformer.cli.run_stats import MemorySize
from mlx_transformer.environment import share_malloc_arena
from mlx_transformer.messages import short_names, short_repr

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
GRACE = 5  # seconds beyond the timeout of a request, after which a server that stops waits no longer


@click.command("serve", cls=GroupedCommand, short_help="Answer requests of LibreTranslate and OpenAI clients.")
@option_group(
    "Models",
    click.option(
        "--model",
        "-m",
        "models",
        metavar="MODEL",
        multiple=True,
        shell_complete=complete_model,
        show_default="the bundled English-French model",
        help="Model folder, torch checkpoint, or owner/name on the hub; repeatable. SOURCE-TARGET=MODEL, such as "
        "en-de=runs/best, gives the languages of a model for one pair.",
    ),
    click.option(
        "--shortlist",
        "shortlists",
        metavar="[MODEL=]FILE",
        multiple=True,
        help="Lexical shortlist of a model, see generate; with several models MODEL=FILE, with MODEL as in --model.",
    ),
    click.option(
        "--memory-limit",
        type=MemorySize(),
        metavar="SIZE",
        help="Memory of weights (4GB) above which the least recently used model is unloaded until it is needed again.",
    ),
    dtype_option,
)
@option_group(
    "Address",
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all."),
    click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True, help="0 for a free one."),
    click.option(
        "--cors-origin",
        "cors_origins",
        metavar="ORIGIN",
        multiple=True,
        help="Origin of web pages that may use the server, such as https://example.com; repeatable; * for all.",
    ),
)
@option_group(
    "Keys",
    click.option("--api-key", "api_keys", metavar="KEY", multiple=True, help="Key of requests; repeatable."),
    click.option(
        "--api-key-file",
        type=click.Path(exists=True, dir_okay=False),
        help="File with one such key per line, which other users of the machine do not see in the list of processes.",
    ),
)
@option_group(
    "Limits",
    click.option("--max-characters", type=click.IntRange(1), default=20_000, show_default=True, help="Of a text."),
    click.option("--max-texts", type=click.IntRange(1), default=128, show_default=True, help="Of a request."),
    click.option("--max-body", type=MemorySize(), default="4MB", show_default=True, help="Size of a request."),
    click.option(
        "--max-queue", type=click.IntRange(1), default=2048, show_default=True, help="Sentences that wait for a model."
    ),
    click.option(
        "--timeout",
        type=click.IntRange(1),
        default=120,
        show_default=True,
        help="Seconds that a request may take.",
    ),
)
def command(
    models: tuple[str, ...],
    shortlists: tuple[str, ...],
    memory_limit: int | None,
    dtype: str | None,
    host: str,
    port: int,
    cors_origins: tuple[str, ...],
    api_keys: tuple[str, ...],
    api_key_file: str | None,
    **limits: Any,
) -> None:
    """Serve models over HTTP, with the APIs of LibreTranslate (/translate) and OpenAI (/v1).

    Requests that arrive together share batches. All models are loaded once at the beginning. The server listens on this
    machine only unless --host says otherwise, and writes no text to its log. Ctrl-C and SIGTERM let it finish the
    requests that run.
    """
    from mlx_transformer.server.settings import ServerSettings

    share_malloc_arena()  # before there are threads
    activity.show("Starting")
    keys = (*api_keys, *read_keys(api_key_file))
    with listen(host, port) as listener:
        is_local = ip_address(listener.getsockname()[0]).is_loopback
        hosts = (*LOOPBACK, host) if is_local else ()
        settings = ServerSettings(**limits, api_keys=keys, hosts=hosts, cors_origins=cors_origins)
        if not is_local and not keys:
            activity.print_line(f"Warning: anyone who reaches {host} may use the server: give --api-key.", err=True)
        run(listener, models or (None,), shortlists, settings, memory_limit, dtype)


def read_keys(path: str | None) -> list[str]:
    """Return the keys in a file, one per line; blank lines do not count."""
    if path is None:
        return []
    keys = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"A file of keys must have at least one line, {path} has none.")
    return keys


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ValueError: If that is not possible.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ValueError(
            f"The server cannot listen on {host}, port {port}: {reason}; choose another --port or --host."
        ) from error


def read_shortlists(names: list[str], texts: tuple[str, ...]) -> dict[str, mt.LexicalShortlist]:
    """Return the shortlists of models by their names; each is given as MODEL=FILE, or as FILE of the only model."""
    paths: dict[str, str] = {}
    for text in texts:
        prefix = max((f"{name}=" for name in names if text.startswith(f"{name}=")), key=len, default="")
        name = prefix[:-1] if prefix or len(names) > 1 else names[0]
        if not name or name in paths:
            raise ValueError(
                f"--shortlist must be MODEL=FILE, once for a model of {short_names(names)}, not {short_repr(text)}."
            )
        paths[name] = text.removeprefix(prefix)
    return {name: mt.read_shortlist(path) for name, path in paths.items()}


def run(
    listener: socket.socket,
    names: tuple[str | None, ...],
    shortlists: tuple[str, ...],
    settings: Any,
    memory_limit: int | None,
    dtype: str | None,
) -> None:
    """Load the models and answer requests until a signal."""
    import uvicorn

    from mlx_transformer.pretrained.loading import load
    from mlx_transformer.server.app import create_app
    from mlx_transformer.server.metrics import Metrics
    from mlx_transformer.server.models import ModelName, ModelStore

    models = [ModelName.parse(name) for name in names]
    of_models = read_shortlists([model.name for model in models], shortlists)
    metrics = Metrics()
    store = ModelStore(
        [model._replace(shortlist=of_models.get(model.name)) for model in models],
        metrics,
        memory_limit,
        settings.max_queue,
        lambda name: load(name, dtype),
    )
    config = uvicorn.Config(
        create_app(store, settings, metrics),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.timeout + GRACE,
    )
    host, port = listener.getsockname()[:2]
    activity.clear()
    click.echo(f"Serving {', '.join(store.names)} on http://{f'[{host}]' if ':' in host else host}:{port}", err=True)
    uvicorn.Server(config).run([listener])
