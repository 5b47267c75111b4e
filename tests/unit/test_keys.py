"""Key files: made once, kept private, the same for everybody."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from models.errors import ConfigurationError
from models.identity import keys
from models.identity.keys import derived_key, load_jwk_set, rotate_jwk_set
from models.settings import Settings

ROOT = Path(__file__).parents[2]
_RACE = """
import sys
from pathlib import Path
from models.identity.keys import derived_key, load_jwk_set
from models.settings import Settings
settings = Settings(_env_file=None, data_dir=Path(sys.argv[1]))
sys.stdin.read(1)
print(load_jwk_set(settings)["keys"][0]["kid"], derived_key(settings, "x").hex())
"""


def settings_in(folder: Path) -> Settings:
    return Settings(_env_file=None, data_dir=folder)


def test_keys_survive_a_restart_and_are_private(tmp_path: Path) -> None:
    first = load_jwk_set(settings_in(tmp_path))
    assert load_jwk_set(settings_in(tmp_path)) == first
    files = [path for path in (tmp_path / "keys").iterdir() if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_purposes_have_keys_of_their_own(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert derived_key(settings, "cursors") == derived_key(settings, "cursors")
    assert derived_key(settings, "cursors") != derived_key(settings, "fingerprints")
    assert derived_key(settings, "cursors") != derived_key(settings_in(tmp_path / "other"), "cursors")


def test_processes_that_race_to_make_the_keys_get_the_same(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("g")
        racer.stdin.close()
    told = {racer.stdout.read() for racer in racers if racer.stdout}
    assert [racer.wait() for racer in racers] == [0, 0]
    assert len(told) == 1
    assert "" not in told


def test_threads_that_race_to_make_a_key_get_the_same(tmp_path: Path) -> None:
    # Two containers with one volume share process ids too: nothing may rest on the pid being one's own.
    start = Barrier(16)
    counter = iter(range(100))

    def make() -> str:
        return f"{next(counter):05d}" * 20_000

    def race(_: int) -> str:
        start.wait()
        return keys._kept(tmp_path / "key", make)

    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(race, range(16)))
    assert len(found) == 1
    assert found == {(tmp_path / "key").read_text()}
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file where the folder should be")
    with pytest.raises(ConfigurationError, match="WAYBILL_DATA_DIR"):
        load_jwk_set(settings_in(tmp_path))


def test_spoiled_master_key_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "master.hex").write_text("not hexadecimal")
    with pytest.raises(ConfigurationError, match=r"master\.hex"):
        derived_key(settings_in(tmp_path), "x")


def test_rotation_keeps_the_others_for_a_day_and_stays_private(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    first = load_jwk_set(settings)["keys"][0]["kid"]
    second = rotate_jwk_set(settings, now=lambda: 1_000_000)["keys"][0]["kid"]
    third = rotate_jwk_set(settings, now=lambda: 1_000_000 + 80_000)
    assert [key["kid"] for key in third["keys"]] == [third["keys"][0]["kid"], second, first]
    fourth = rotate_jwk_set(settings, now=lambda: 1_000_000 + 90_000)
    assert [key["kid"] for key in fourth["keys"][1:]] == [third["keys"][0]["kid"], second]
    assert load_jwk_set(settings) == fourth
    assert stat.S_IMODE((tmp_path / "keys" / "jwt.json").stat().st_mode) == 0o600


def test_keys_given_by_setting_are_not_rotated(tmp_path: Path) -> None:
    given = Settings(_env_file=None, data_dir=tmp_path, jwt_keys='{"keys": []}')
    with pytest.raises(ConfigurationError, match="WAYBILL_JWT_KEYS"):
        rotate_jwk_set(given)
    assert not (tmp_path / "keys").exists()
