"""The command line: every promised name, fast help, faults in one line."""

import signal
import subprocess
import sys

import pytest

from deploy import cli
from deploy.stop_request import Stopped, StopRequest
from models.errors import ConfigurationError

PROMISED = [
    "up",
    "api",
    "worker",
    "consumer",
    "migrate",
    "user",
    "token",
    "submit",
    "jobs",
    "dead-letters",
    "bench",
    "chaos",
    "doctor",
    "openapi",
    "asyncapi",
]


def test_help_names_every_command_without_loading_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in PROMISED if f"  {name} " not in text] == []


def test_help_imports_no_library_of_the_platform() -> None:
    code = "import sys; from deploy.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    check = code + "print([m for m in ('celery', 'sqlalchemy', 'psycopg', 'kombu') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_wrong_setting_is_one_line_and_status_two(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_DATABASE_URL", "mysql://nope")
    with pytest.raises(SystemExit) as caught:
        cli.main(["up"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("waybill: WAYBILL_DATABASE_URL: ")
    assert error.count("\n") == 1


def test_fault_text_of_many_lines_becomes_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConfigurationError("first\n  second")

    monkeypatch.setattr(cli.waybill, "main", fail)
    with pytest.raises(SystemExit):
        cli.main([])
    assert capsys.readouterr().err == "waybill: first second\n"


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["no-such-command"])
    assert caught.value.code == 2
    assert "No such command" in capsys.readouterr().err


def test_signal_is_remembered_and_interrupts_only_what_allows_it() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    stop = StopRequest()
    stop.install()
    try:
        assert not stop()
        with pytest.raises(Stopped), stop.interrupts():
            signal.raise_signal(signal.SIGTERM)
        assert stop()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), stop.interrupts():
            pytest.fail("not entered once a stop was requested")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
