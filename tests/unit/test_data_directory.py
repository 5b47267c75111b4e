"""The data directory: modes, secrets, clear refusals."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from deploy import data_directory
from deploy.data_directory import DataDirectory, write_private
from models.errors import ConfigurationError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_rooms_are_private_and_root_lets_others_pass_through(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "deep" / "data")
    directory.prepare()
    assert mode(directory.path) == (0o711 if os.geteuid() == 0 else 0o700)
    assert {mode(room) for room in (directory.run, directory.secrets, directory.log)} == {0o700}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory to keep files in")  # noqa: S108
def test_metrics_are_kept_in_memory_in_a_room_of_their_own(tmp_path: Path) -> None:
    directories = [DataDirectory(tmp_path / name) for name in ("a", "b")]
    for one in directories:
        one.empty_metrics()
        (one.metrics / "counter").touch()
    first, second = directories
    assert first.metrics.parent == Path("/dev/shm")  # noqa: S108
    assert first.metrics.stat().st_mode & 0o777 == 0o700
    first.remove_metrics()
    assert not first.metrics.exists()
    assert [file.name for file in second.metrics.iterdir()] == ["counter"]
    second.empty_metrics()
    assert list(second.metrics.iterdir()) == []
    second.remove_metrics()


def test_metrics_are_kept_on_disk_where_there_is_no_memory_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_directory, "_MEMORY", tmp_path / "none")
    directory = DataDirectory(tmp_path)
    assert directory.metrics == tmp_path / "run" / "metrics"


def test_secret_is_generated_once_and_kept_private(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.prepare()
    assert not directory.has_secret("postgres")
    secret = directory.secret("postgres")
    assert directory.has_secret("postgres")
    assert DataDirectory(tmp_path).secret("postgres") == secret
    assert directory.secret("redis") != secret
    assert mode(directory.secrets / "postgres") == 0o600


def test_file_in_place_of_the_directory_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("not a directory")
    with pytest.raises(ConfigurationError, match="set WAYBILL_DATA_DIR") as caught:
        DataDirectory(file).prepare()
    assert "\n" not in str(caught.value)


def test_directory_that_may_not_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigurationError, match="mend its owner and mode"):
        DataDirectory(tmp_path).prepare()


def test_too_little_space_says_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=7 * 1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigurationError, match=r"only 7 MiB are free .* 64 MiB are needed"):
        DataDirectory(tmp_path).require_free(64)


def test_private_file_replaces_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("old")
    file.chmod(0o644)
    write_private(file, "new")
    assert file.read_text() == "new"
    assert mode(file) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_long_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.data_directory._LOG_LIMIT", 3)
    directory = DataDirectory(tmp_path)
    directory.prepare()
    directory.log_file("redis").write_text("four")
    os.close(directory.open_log("redis"))
    assert directory.log_file("redis").read_text() == ""
    assert (directory.log / "redis.log.1").read_text() == "four"
