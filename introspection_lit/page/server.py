"""The server: the page behind its gate, on one socket, until it is stopped."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from introspection_lit.utils.errors import ConfigurationError

FIRST_PORT, PORTS = 7860, 100
LOCAL = ("127.0.0.1", "localhost", "[::1]")
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int | None) -> socket.socket:
    """Take a port.

    Args:
        host: Address of this machine.
        port: The port; 0: any; None: the first free one from 7860.

    Raises:
        ConfigurationError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    reason: Exception | None = None
    for each in ports:
        taken = socket.socket(family, socket.SOCK_STREAM)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, each))
        except (OSError, OverflowError) as error:
            taken.close()
            reason = error
        else:
            return taken
    what = f"--host {host} --port {port}" if port is not None else f"--host {host}, ports {ports[0]} to {ports[-1]}"
    raise ConfigurationError(
        [f"{what}: cannot be had ({reason}). Give another --port, or an address of this machine as --host."]
    )


def address(taken: socket.socket) -> str:
    """The address of the page, for a browser."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def use_folder(folder: Path) -> None:
    """Have Gradio keep uploads in a folder, and tell nobody that it is used; before it is imported."""
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def application(blocks: Any, folder: Path, hosts: Collection[str] | None) -> Any:
    """The page as an ASGI application.

    Args:
        blocks: The page.
        folder: Where uploads go.
        hosts: As for :class:`~introspection_lit.page.gate.Gate`.
    """
    import gradio as gr
    from fastapi import FastAPI

    from introspection_lit.page.directions import MOST_BYTES
    from introspection_lit.page.gate import Gate
    from introspection_lit.page.style import CSS

    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(primary_hue="amber", **FONTS),
        css=CSS,
    )
    return Gate(app, hosts, folder)


def run(app: Any, taken: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM."""
    import uvicorn

    # Browsers keep connections open, for which nobody waits at the end.
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, server_header=False)
    uvicorn.Server(config).run(sockets=[taken])
