"""The command line: every promised name, fast help, faults in one line."""

import signal
import subprocess
import sys
import types

import click
import pytest

from deploy import cli, process_commands
from deploy.stop_request import Stopped, StopRequest
from models.errors import ConfigurationError
from models.settings import Settings

PROMISED = (
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
)


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


@pytest.mark.parametrize("name", ["api", "worker", "consumer", "flower", "node"])
def test_process_command_runs_the_main_of_its_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Settings] = []

    def run(settings: Settings, **_options: object) -> int:
        received.append(settings)
        return 7

    room = types.SimpleNamespace(run=run)
    monkeypatch.setattr(
        process_commands.importlib, "import_module", {process_commands._MAINS[name]: room}.get
    )
    monkeypatch.delenv("WAYBILL_LAUNCHER_PID", raising=False)
    command: click.Command = getattr(process_commands, name)
    with pytest.raises(SystemExit) as ended:
        command.main([], standalone_mode=False)
    assert ended.value.code == 7
    assert len(received) == 1


def test_process_whose_launcher_is_gone_ends_at_once() -> None:
    code = "from deploy.parent import die_with_launcher; die_with_launcher(); print('lives on')"
    environment = {"WAYBILL_LAUNCHER_PID": "1", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "the launcher is gone" in result.stderr
    assert result.stdout == ""
