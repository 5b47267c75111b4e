"""What a second shell reads: written private, read back unchanged; one launcher at a time."""

import stat
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deploy.data_directory import DataDirectory
from deploy.run_file import only_launcher, remove_run_file, run_file, write_run_file
from models.errors import ConfigurationError
from models.settings import load_settings

_PASSWORDS = st.text(st.characters(codec="ascii", exclude_categories=("C", "Z")), max_size=20)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataDirectory:
    made = DataDirectory(tmp_path)
    made.prepare()
    monkeypatch.setenv("WAYBILL_DATA_DIR", str(tmp_path))
    for name in ("WAYBILL_DATABASE_URL", "WAYBILL_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return made


@given(password=_PASSWORDS)
@example(password="it's ${HOME} \\' #1")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_urls_are_read_back_as_written(directory: DataDirectory, password: str) -> None:
    for mark in "/?#@:[]":  # else it could not be read as a URL
        password = password.replace(mark, quote(mark, safe=""))
    url = f"redis://:{password}@127.0.0.1:1/0"
    write_run_file(directory, {"WAYBILL_REDIS_URL": url})
    assert load_settings().redis_url == url.replace("$", "%24")


def test_file_is_private_and_vanishes(directory: DataDirectory) -> None:
    write_run_file(directory, {"WAYBILL_API_PORT": "8123", "HOME": "/not/ours"})
    assert stat.S_IMODE(run_file(directory).stat().st_mode) == 0o600
    assert run_file(directory).read_text() == "WAYBILL_API_PORT='8123'\n"
    assert load_settings().api_port == 8123
    assert load_settings(with_run_file=False).api_port == 8000
    remove_run_file(directory)
    assert load_settings().api_port == 8000


def test_second_launcher_is_told_the_pid_of_the_first(directory: DataDirectory) -> None:
    refused = pytest.raises(ConfigurationError, match=r"already \(pid \d+\)")
    with only_launcher(directory), refused, only_launcher(directory):
        pytest.fail("both hold it")
    with only_launcher(directory):
        pass
