"""The house keeps its order: docstrings, sizes, a README and a command line that name everything."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import waybill
from models.settings import Settings
from tests.kit import readme

CHECKOUT = Path(__file__).parents[2]
ROOMS = ("models", "tasks", "consumers", "api_shim", "deploy", "tests")
MODULES = sorted(path for room in ROOMS for path in (CHECKOUT / room).rglob("*.py"))
LONGEST_MODULE = 450
LONGEST_TEST = 650
TOP_LEVEL = {*ROOMS, "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".ci", ".gitignore"}
COMMANDS = (
    *("up", "api", "worker", "consumer", "migrate", "user", "token", "submit", "jobs"),
    *("dead-letters", "bench", "chaos", "doctor", "openapi", "asyncapi"),
)
"""As the contract names them."""
SETTINGS = (
    *("WAYBILL_DATABASE_URL", "WAYBILL_BROKER_URL", "WAYBILL_REDIS_URL", "WAYBILL_DATA_DIR"),
    *("WAYBILL_API_HOST", "WAYBILL_API_PORT", "WAYBILL_FLOWER_PORT", "WAYBILL_ADMIN_EMAIL"),
    *("WAYBILL_ADMIN_PASSWORD", "WAYBILL_JWT_KEYS", "WAYBILL_RATE_LIMITS"),
    *("WAYBILL_CALLBACK_ALLOW_PRIVATE", "WAYBILL_AMQP_PRINCIPALS", "WAYBILL_BROKER_API_URL"),
    *("WAYBILL_RESOURCES", "WAYBILL_LOG_LEVEL"),
)
"""As the contract names them."""


def _named(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def test_every_module_says_in_its_first_line_what_lives_there() -> None:
    assert [_named(path) for path in MODULES if not _first_line(path).endswith((".", "?", "::"))] == []


def test_no_module_is_too_long_to_read() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    limits = {path: LONGEST_TEST if path.name.startswith("test_") else LONGEST_MODULE for path in MODULES}

    assert {_named(path): lengths[path] for path in MODULES if lengths[path] > limits[path]} == {}


def test_no_module_is_called_a_drawer() -> None:
    drawers = {"utils", "helpers", "common", "misc", "manager", "base_service"}

    assert [_named(path) for path in MODULES if path.stem in drawers] == []


def test_top_level_is_the_one_agreed_on() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    if not any(tracked):
        pytest.skip("NOT A GIT CHECKOUT")

    assert {name.split("/")[0] for name in tracked if name} <= TOP_LEVEL


def test_readme_has_a_row_for_every_setting() -> None:
    rows = [line for line in readme.section("Settings").splitlines() if line.startswith("| `WAYBILL_")]
    named = [line.split("`")[1] for line in rows]

    assert set(SETTINGS) <= set(named)
    assert sorted(named) == sorted(f"WAYBILL_{name.upper()}" for name in Settings.model_fields)


def test_readme_states_the_defaults_that_are_in_force() -> None:
    cells = [line.split("|") for line in readme.section("Settings").splitlines() if line.startswith("| `")]
    stated = {row[1].strip(" `"): row[2].strip(" `") for row in cells}

    for name, field in Settings.model_fields.items():
        if field.default not in ("", None, ()) and not field.default_factory:
            default = str(int(field.default) if isinstance(field.default, bool) else field.default)
            assert stated[f"WAYBILL_{name.upper()}"] == default, name


def test_help_lists_every_command_of_the_contract() -> None:
    listed = CliRunner().invoke(waybill, ["--help"]).output

    assert [name for name in COMMANDS if f"\n  {name} " not in listed] == []


@pytest.mark.parametrize("command", waybill.list_commands(None))  # type: ignore[arg-type]
def test_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(waybill, [command, "--help"])

    assert result.exit_code == 0, result.output
    assert result.exception is None
    assert result.output.startswith(f"Usage: waybill {command} ")


def test_wrong_setting_is_one_line_and_no_traceback() -> None:
    shell = subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", "jobs"],
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT), "WAYBILL_DATABASE_URL": "mysql://nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert shell.returncode == 2
    assert shell.stderr.startswith("waybill: WAYBILL_DATABASE_URL: ")
    assert shell.stderr.count("\n") == 1
