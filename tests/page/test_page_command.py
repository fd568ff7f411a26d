"""The command ``serve``: what it refuses, before a model is loaded; and which addresses it takes."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bank_example import small_bank

from introspection_lit.cli import main
from introspection_lit.detector import Detector
from introspection_lit.page import command
from introspection_lit.page.server import address, is_local, listen
from introspection_lit.utils.errors import ConfigurationError


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must end with status 2 before it loads a model; what it says."""

    def no_loading(*_: Any) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr(Detector, "from_pretrained", no_loading)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "find_spec", lambda _: object())

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["serve", *words])
        assert stop.value.code == 2
        return capsys.readouterr().err

    return run


def test_without_gradio(adapter: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the command that installs it."""
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    said = refused("--adapter", str(adapter))
    assert "the page cannot be served" in said
    assert "pip install 'introspection_lit[page]'" in said


def test_adapters_and_vectors_that_are_not_there(adapter: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    """No adapter, one without vectors, vectors that are none."""
    assert "no such folder: nowhere" in refused("--adapter", "nowhere")
    shutil.copytree(adapter, tmp_path / "alone" / "adapter")
    said = refused("--adapter", str(tmp_path / "alone" / "adapter"))
    assert "there is no vectors.safetensors in" in said
    assert "--vectors" in said
    (tmp_path / "empty.safetensors").touch()
    assert "--vectors: " in refused("--adapter", str(adapter), "--vectors", str(tmp_path / "empty.safetensors"))


def test_vectors_of_another_model(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Known once the model is; those beside the adapter are then not asked for."""
    small_bank().save(tmp_path / "other.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["serve", "--adapter", str(adapter), "--vectors", str(tmp_path / "other.safetensors"), "--port", "0"])
    assert stop.value.code == 2
    assert "--vectors: made for 3 layers" in capsys.readouterr().err


def test_ports(adapter: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is taken, ones that are none, an address of another machine; the next free one where none is named."""
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        said = refused("--adapter", str(adapter), "--port", str(port))
        assert f"--host 127.0.0.1 --port {port}: cannot be had" in said
        monkeypatch.setattr("introspection_lit.page.server.FIRST_PORT", port)
        with listen("127.0.0.1", None) as other:
            assert port < other.getsockname()[1] < port + 100
            assert address(other) == f"http://127.0.0.1:{other.getsockname()[1]}/"
    for words in (["--port", "99999"], ["--port", "-1"], ["--host", "192.0.2.1"], ["--host", "no such host"]):
        assert "cannot be had" in refused("--adapter", str(adapter), *words)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a.b", False),
    ],
)
def test_addresses_that_only_this_machine_reaches(host: str, local: bool) -> None:
    """Others get a warning."""
    assert is_local(host) == local


def test_default_is_this_machine_alone() -> None:
    """Nobody else, unless asked for."""
    with listen("127.0.0.1", 0) as taken:
        assert taken.family == socket.AF_INET
    with pytest.raises(ConfigurationError, match="ports 7860 to 7959: cannot be had"):
        listen("192.0.2.1", None)
