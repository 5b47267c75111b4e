"""Ports: free or taken, chosen below the ephemeral range, remembered."""

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import ports
from models.errors import ConfigurationError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((ports.LOOPBACK, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_port_that_somebody_listens_on_is_not_free(taken: int) -> None:
    assert not ports.is_free(taken)


def test_free_port_is_below_the_ephemeral_range_and_skips_the_taken() -> None:
    choices = iter([20_001, 20_002])
    chosen = ports.free_port(avoid=frozenset({20_001}), choose=lambda low, high: next(choices))
    assert chosen == 20_002
    assert ports.free_port() < 32_768


def test_no_free_port_at_all_is_said(taken: int) -> None:
    with pytest.raises(ConfigurationError, match="no free port"):
        ports.free_port(choose=lambda low, high: taken)


def test_taken_port_names_the_setting(taken: int) -> None:
    with pytest.raises(ConfigurationError, match="set WAYBILL_API_PORT to a free port"):
        ports.require_port(ports.LOOPBACK, taken, "WAYBILL_API_PORT")


def test_forbidden_port_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "bind_error", lambda *_: PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(ConfigurationError, match="set WAYBILL_API_PORT above 1023"):
        ports.require_port(ports.LOOPBACK, 80, "WAYBILL_API_PORT")


def test_foreign_address_names_the_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1"):
        ports.require_port("192.0.2.1", ports.free_port(), "WAYBILL_API_PORT")


def test_remembered_port_is_used_again(tmp_path: Path) -> None:
    first = ports.RememberedPorts(tmp_path / "ports.json").choose("redis")
    assert ports.RememberedPorts(tmp_path / "ports.json").choose("redis") == first


def test_remembered_port_that_is_taken_is_replaced(tmp_path: Path, taken: int) -> None:
    remembered = ports.RememberedPorts(tmp_path / "ports.json")
    remembered.remember("redis", taken)
    assert remembered.choose("redis") != taken
    assert remembered.recall("redis") != taken


@pytest.mark.parametrize("text", ["", "[]", "{", '{"redis": "no number"}'])
def test_damaged_memory_counts_as_empty(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ports.json"
    file.write_text(text)
    assert ports.RememberedPorts(file).recall("redis") is None
