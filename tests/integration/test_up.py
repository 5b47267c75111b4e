"""``waybill up`` with real servers and stand-ins for our own processes: starts, restarts, adopts, ends."""

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.data_directory import DataDirectory
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from deploy.redis_server import RedisServer, find_redis
from deploy.server import processes_in
from deploy.supervisor import KINDS
from models.settings import load_settings
from tests.kit.launched import MOST_SECONDS_TO_STOP, ended, launched
from tests.kit.servers import require, temporary_data_directory
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def directory() -> Iterator[DataDirectory]:
    with temporary_data_directory() as made:
        yield made
        PostgresServer(made).kill()


def postgres_processes(directory: DataDirectory) -> list[int]:
    return [
        process.pid for process in processes_in(directory.path / "postgres" / "data", frozenset({"postgres"}))
    ]


def test_says_who_is_who_and_leaves_nothing_running(directory: DataDirectory) -> None:
    with launched(directory) as up:
        up.wait_ready()
        pids = up.processes()
        assert set(pids) == {"up", *KINDS}
        assert pids["up"] == up.process.pid
        assert pids["api"] == pids["worker"] == pids["flower"]
        assert pids["consumer"] == pids["rabbitmq"] == pids["redis"] == []
        assert len(pids["postgres"]) == 1
        began = time.monotonic()
        assert up.stop() == 0
        assert time.monotonic() - began < MOST_SECONDS_TO_STOP
        assert ended(pids["api"][0])
        assert postgres_processes(directory) == []
        assert directory.secret("postgres") not in up.said()


def test_second_shell_finds_the_servers_until_it_stops(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_DATA_DIR", str(directory.path))
    with launched(directory) as up:
        up.wait_ready()
        file = directory.run / "waybill.env"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        settings = load_settings()
        assert settings.api_port == up.api_port
        with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("waybill",)
        up.stop()
        assert not file.exists()


def test_second_launcher_on_the_same_data_is_refused_in_one_line(directory: DataDirectory) -> None:
    with launched(directory) as first:
        first.wait_ready()
        with launched(directory) as second:
            assert second.wait_exit() == 2
            assert f"already (pid {first.process.pid})" in second.said()
            assert second.said().count("\n") == 1
        assert first.process.poll() is None
        assert first.processes() != {}


def test_what_is_killed_is_restarted(directory: DataDirectory) -> None:
    with launched(directory) as up:
        up.wait_ready()
        for kind in ("api", "postgres"):
            victim = up.processes()[kind][0]
            os.kill(victim, signal.SIGKILL)
            wait_until(
                lambda k=kind, v=victim: up.processes().get(k, [v]) not in ([], [v]), timeout_seconds=90
            )
        server = PostgresServer(directory)
        wait_until(server.is_ready, timeout_seconds=90)


def test_killed_launcher_takes_its_children_along_and_its_heir_adopts_the_database(
    directory: DataDirectory,
) -> None:
    with launched(directory) as first:
        first.wait_ready()
        before = first.processes()
        first.kill()
        wait_until(lambda: ended(before["api"][0]), timeout_seconds=90)
    with launched(directory) as second:
        second.wait_ready()
        assert second.processes()["postgres"] == before["postgres"]
        second.stop()
    assert postgres_processes(directory) == []


def test_taken_port_is_one_line_that_names_the_setting(directory: DataDirectory) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with launched(directory, WAYBILL_API_PORT=str(taken.getsockname()[1])) as up:
            assert up.wait_exit() == 2
            assert "set WAYBILL_API_PORT to a free port" in up.said()
            assert up.said().count("\n") == 1


def test_child_with_a_wrong_setting_ends_the_start(directory: DataDirectory) -> None:
    with launched(directory, status="2") as up:
        assert up.wait_exit() == 2
        assert "Traceback" not in up.said()
        assert "node cannot run" in up.said()
    assert postgres_processes(directory) == []


def test_a_signal_while_starting_leaves_nothing(directory: DataDirectory) -> None:
    with launched(directory, status="1") as up:
        wait_until(lambda: up.processes().get("api"), timeout_seconds=90)
        assert up.stop() == 0
    assert postgres_processes(directory) == []


def test_demo_hands_on_its_exit_status_and_stops_everything(directory: DataDirectory) -> None:
    with launched(directory, "--demo", "3") as up:
        assert up.wait_exit() == 1  # the stand-in accepts no job
        assert "waybill: stopped" in up.said()
        assert "Traceback" not in up.said()
    assert postgres_processes(directory) == []


def test_memory_broker_and_full_contradict_each_other(directory: DataDirectory) -> None:
    with launched(directory, "--full", WAYBILL_BROKER_URL="memory://") as up:
        assert up.wait_exit() == 2
        assert "unset WAYBILL_BROKER_URL" in up.said()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_behind_its_output_ends_nothing(directory: DataDirectory) -> None:
    with launched(directory, output=Path("/dev/full")) as up:
        wait_until(lambda: up.processes().get("api"), timeout_seconds=90, what="the API runs")
        time.sleep(1)  # it has said that it is ready by then
        assert up.process.poll() is None
        up.stop()
    assert postgres_processes(directory) == []


def test_port_nought_means_any(directory: DataDirectory) -> None:
    with launched(directory, WAYBILL_API_PORT="0", WAYBILL_FLOWER_PORT="0") as up:
        up.wait_ready()
        assert "127.0.0.1:0" not in up.said()


def test_named_database_is_used_and_none_is_started(directory: DataDirectory, database_url: str) -> None:
    with launched(directory, WAYBILL_DATABASE_URL=database_url) as up:
        up.wait_ready()
        assert up.processes()["postgres"] == []
        assert not (directory.path / "postgres").exists()


def test_full_runs_every_process_and_survives_a_killed_broker(directory: DataDirectory) -> None:
    require(find_rabbitmq)
    require(find_redis)
    with launched(directory, "--full") as up:
        up.wait_ready()
        before = up.processes()
        assert all(len(before[kind]) == 1 for kind in KINDS)
        assert len({before[kind][0] for kind in KINDS}) == len(KINDS)
        for kind in ("rabbitmq", "redis", "worker", "consumer"):
            os.kill(before[kind][0], signal.SIGKILL)
        kinds = ("rabbitmq", "redis", "worker", "consumer")
        wait_until(
            lambda: all(up.processes().get(kind, []) not in ([], before[kind]) for kind in kinds),
            timeout_seconds=90,
            what="all restarted",
        )
        wait_until(RabbitMQServer(directory).is_ready, timeout_seconds=90)
        wait_until(RedisServer(directory).is_ready, timeout_seconds=90)
        began = time.monotonic()
        assert up.stop() == 0
        assert time.monotonic() - began < MOST_SECONDS_TO_STOP
        for name, programs in (("rabbitmq", RabbitMQServer.programs), ("redis", RedisServer.programs)):
            assert processes_in(directory.path / name, programs) == []
        for secret in ("postgres", "rabbitmq", "redis"):
            assert directory.secret(secret) not in up.said()
