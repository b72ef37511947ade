"""A local HTTP server with the APIs of LibreTranslate and OpenAI; it needs the extra serve."""

from mlx_transformer.messages import install_command

try:
    import prometheus_client as prometheus_client
    import starlette as starlette
    import uvicorn as uvicorn
except ModuleNotFoundError as error:
    raise ValueError(
        f"The server needs starlette, uvicorn and prometheus_client: {error}; {install_command('serve')}."
    ) from error
