"""The supervisor's decisions, on a clock that we turn and processes that are not there."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.supervisor import KINDS, Entry, Supervisor
from models.errors import ConfigurationError


class Clock:
    """Seconds that we turn by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fake:
    """A process that is not there; notes what was asked of it."""

    name: str
    events: list[str] = field(default_factory=list)
    alive: bool = False
    launches: int = 0
    stubborn: bool = False
    broken: bool = False

    @property
    def pid(self) -> int | None:
        return 1000 + self.launches if self.alive else None

    def launch(self) -> None:
        if self.broken:
            raise ConfigurationError("no disk")
        self.alive, self.launches = True, self.launches + 1

    def is_alive(self) -> bool:
        return self.alive

    def ask_to_stop(self) -> None:
        self.events.append(f"ask {self.name}")
        self.alive = self.stubborn

    def kill(self) -> None:
        if self.alive:
            self.events.append(f"kill {self.name}")
        self.alive = False


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervisor(tmp_path: Path, clock: Clock) -> Supervisor:
    return Supervisor(tmp_path / "processes.json", clock)


def who(tmp_path: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((tmp_path / "processes.json").read_text())
    return document


def test_file_names_every_kind_and_itself(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.add(Fake("node"), ("api", "worker"))
    expected: dict[str, object] = {kind: [] for kind in KINDS}
    assert who(tmp_path) == expected | {"up": os.getpid(), "api": [1001], "worker": [1001]}


def test_what_ends_is_restarted_and_the_file_rewritten(
    supervisor: Supervisor, clock: Clock, tmp_path: Path
) -> None:
    api = Fake("api")
    supervisor.add(api, ("api",))
    api.alive = False
    assert supervisor.check() == [api]
    assert who(tmp_path)["api"] == []
    clock.now += Entry.FIRST_DELAY_SECONDS
    assert supervisor.check() == []
    assert api.launches == 2
    assert who(tmp_path)["api"] == [1002]


def test_file_that_cannot_be_written_ends_nobody_and_is_written_once_it_can(
    supervisor: Supervisor, clock: Clock, tmp_path: Path
) -> None:
    api = Fake("api")
    supervisor.add(api, ("api",))
    elsewhere = tmp_path.with_name("away")
    tmp_path.rename(elsewhere)
    api.alive = False
    supervisor.check()
    clock.now += Entry.FIRST_DELAY_SECONDS
    supervisor.check()
    assert api.launches == 2
    elsewhere.rename(tmp_path)
    supervisor.check()
    assert who(tmp_path)["api"] == [1002]


def test_what_flaps_waits_longer_but_never_five_seconds(supervisor: Supervisor, clock: Clock) -> None:
    api = Fake("api")
    supervisor.add(api, ("api",))
    pauses = []
    for _ in range(8):
        api.alive = False
        supervisor.check()
        ended, launches = clock.now, api.launches
        while api.launches == launches:
            clock.now += 0.1
            supervisor.check()
        pauses.append(round(clock.now - ended, 3))
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.5
    assert max(pauses) < 4


def test_long_life_forgives_earlier_flapping() -> None:
    entry = Entry(Fake("api"), ("api",))
    for _ in range(6):
        entry.note_launch(0.0)
        entry.note_end(0.1)
    entry.note_launch(100.0)
    entry.note_end(100.0 + Entry.STEADY_AFTER_SECONDS)
    assert entry.restart_at == pytest.approx(100.0 + Entry.STEADY_AFTER_SECONDS + Entry.FIRST_DELAY_SECONDS)


def test_restart_that_fails_is_tried_again(supervisor: Supervisor, clock: Clock) -> None:
    redis = Fake("redis")
    supervisor.add(redis, ("redis",))
    redis.alive, redis.broken = False, True
    supervisor.check()
    clock.now += 1
    supervisor.check()
    redis.broken = False
    clock.now += 4
    supervisor.check()
    assert redis.launches == 2


def test_stops_phase_by_phase_and_kills_the_stubborn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    supervisor = Supervisor(tmp_path / "processes.json", clock)
    events: list[str] = []
    for kind in ("postgres", "worker", "api"):
        supervisor.add(Fake(kind, events, stubborn=kind == "worker"), (kind,))
    assert supervisor.is_busy
    supervisor.stop([(("api",), 1.0), (("worker",), 2.0), (("postgres",), 3.0)])
    assert events == ["ask api", "ask worker", "kill worker", "ask postgres"]
    assert clock.now == pytest.approx(2.0, abs=0.1)
    assert not supervisor.is_busy
    assert not (tmp_path / "processes.json").exists()


def test_half_started_is_stopped_too(supervisor: Supervisor) -> None:
    broken = Fake("redis", broken=True)
    with pytest.raises(ConfigurationError):
        supervisor.add(broken, ("redis",))
    supervisor.stop([])
    assert broken.events == ["ask redis"]
