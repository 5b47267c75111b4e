"""The three servers that we start: data kept, survivors adopted, the dead recovered, faults named."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from kombu import Connection

from deploy import postgres_home
from deploy.account import Account
from deploy.data_directory import DataDirectory
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from deploy.redis_server import RedisServer, find_redis
from deploy.server import LocalServer, processes_in
from models.errors import ConfigurationError
from tests.kit.servers import require, temporary_data_directory
from tests.kit.waiting import wait_until

Make = Callable[[DataDirectory], LocalServer]


@pytest.fixture
def directory() -> Iterator[DataDirectory]:
    with temporary_data_directory() as made:
        yield made


@pytest.fixture(params=["postgres", "rabbitmq", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "rabbitmq":
        require(find_rabbitmq)
        return RabbitMQServer
    if request.param == "redis":
        require(find_redis)
        return RedisServer
    return PostgresServer


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def workplace_is_empty(server: LocalServer) -> bool:
    return not processes_in(server._workplace, server.programs)


def test_server_starts_stops_and_leaves_no_process(make: Make, directory: DataDirectory) -> None:
    server = make(directory)
    try:
        server.start()
        assert server.is_ready()
        assert server.pid is not None
        assert psutil.Process(server.pid).name() == server.main_program
    finally:
        server.stop()
    assert server.pid is None
    assert not server.is_ready()
    assert workplace_is_empty(server)


def test_listens_on_loopback_only(make: Make, directory: DataDirectory) -> None:
    server = make(directory)
    try:
        server.start()
        listening = [
            connection.laddr.ip
            for process in processes_in(server._workplace, server.programs)
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {ip for ip in listening if ip not in {"127.0.0.1", "::1"}} == set()
    finally:
        server.kill()


def test_password_is_on_no_command_line_and_in_no_log(make: Make, directory: DataDirectory) -> None:
    server = make(directory)
    try:
        server.start()
        secret = directory.secret(server.name)
        assert secret in server.url
        commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        assert not [command for command in commands if secret in command]
    finally:
        server.kill()
    assert secret not in server.log_file.read_text(errors="replace")


def test_killed_server_is_started_again_at_the_same_url(make: Make, directory: DataDirectory) -> None:
    server = make(directory)
    try:
        server.start()
        url, first = server.url, server.pid
        kill(first)
        wait_until(lambda: not server.is_alive())
        server.start()
        assert server.url == url
        assert server.pid != first
    finally:
        server.kill()


def test_survivor_of_a_killed_launcher_is_adopted(make: Make, directory: DataDirectory) -> None:
    orphan, heir = make(directory), make(directory)
    try:
        orphan.start()
        heir.start()
        assert heir.pid == orphan.pid
        assert heir.url == orphan.url
    finally:
        heir.kill()
        orphan.kill()
    assert workplace_is_empty(heir)


def test_session_that_ends_while_it_is_looked_at_is_not_taken_for_the_server(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan, heir = PostgresServer(directory), PostgresServer(directory)
    try:
        orphan.start()
        with psycopg.connect(orphan.url) as connection:
            session = psutil.Process(connection.info.backend_pid)
            assert session.name() == orphan.main_program
        session.wait(10)
        # found, of this name, and then ended
        monkeypatch.setattr("deploy.server.processes_in", lambda *at: [session, *processes_in(*at)])
        monkeypatch.setattr("deploy.server._name", lambda _: orphan.main_program)
        heir.start()
        assert heir.pid == orphan.pid
    finally:
        monkeypatch.undo()
        heir.kill()
        orphan.kill()


def test_survivor_that_does_not_answer_is_replaced(directory: DataDirectory) -> None:
    require(find_redis)
    hung, heir = RedisServer(directory), RedisServer(directory)
    try:
        hung.start()
        assert hung.pid is not None
        os.kill(hung.pid, signal.SIGSTOP)
        heir.start()
        assert heir.pid != hung.pid
        assert heir.is_ready()
    finally:
        heir.kill()
        hung.kill()


def test_postgres_keeps_what_was_committed_over_a_kill(directory: DataDirectory) -> None:
    server = PostgresServer(directory)
    try:
        server.start()
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        kill(server.pid)
        again = PostgresServer(directory)
        again.start()
        with psycopg.connect(again.url) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
            durable = connection.execute(
                "SELECT name FROM pg_settings WHERE setting = 'on'"
                " AND name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
            ).fetchall()
            assert len(durable) == 3
            superuser = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            assert superuser.fetchone() == (False,)
    finally:
        server.kill()


def test_postgres_ignores_a_stale_pid_file_of_another_process(directory: DataDirectory) -> None:
    server = PostgresServer(directory)
    try:
        server.start()
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        owner = psutil.Process(server.pid).uids().real
        stranger = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
        try:
            kill(server.pid)
            wait_until(lambda: not server.is_alive())
            pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
            server.start()
            assert server.is_ready()
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
    finally:
        server.kill()


def test_postgres_wants_a_password(directory: DataDirectory) -> None:
    server = PostgresServer(directory)
    try:
        server.start()
        wrong = server.url.replace(directory.secret("postgres"), "wrong")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)
    finally:
        server.kill()


def test_interrupted_initialisation_is_begun_anew(directory: DataDirectory) -> None:
    server = PostgresServer(directory)
    home = postgres_home.find_postgres_home(directory)
    half_made = home.room / "data.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    try:
        server.start()
        assert server.is_ready()
        assert not half_made.exists()
    finally:
        server.kill()


def test_lost_password_file_is_made_good(directory: DataDirectory) -> None:
    server = PostgresServer(directory)
    try:
        server.start()
        server.stop()
        (directory.secrets / "postgres").unlink()
        again = PostgresServer(directory)
        again.start()
        assert again.is_ready()
        again.stop()
    finally:
        server.kill()


def test_data_of_another_major_version_is_refused_in_one_line(directory: DataDirectory) -> None:
    home = postgres_home.find_postgres_home(directory)
    home.data.mkdir()
    (home.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigurationError, match=r"holds data of PostgreSQL 16 .* pg_dump") as caught:
        PostgresServer(directory).start()
    assert "\n" not in str(caught.value)


def test_missing_binaries_are_named(directory: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_home, "_PACKAGE", "no_such_package")
    with pytest.raises(ConfigurationError, match="no PostgreSQL 18 binaries"):
        PostgresServer(directory).start()


def test_full_disk_is_named(directory: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(directory.path)._replace(free=5 * 1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigurationError, match="only 5 MiB are free"):
        PostgresServer(directory).start()


@pytest.mark.parametrize(
    ("server", "package"), [(RabbitMQServer, "rabbitmq-server"), (RedisServer, "redis-server")]
)
def test_missing_program_names_the_package(
    server: Make, package: str, directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigurationError, match=f"apt-get install {package}"):
        server(directory).launch()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to drop privileges")
def test_root_keeps_data_elsewhere_when_the_unprivileged_user_cannot_reach_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    directory = DataDirectory(tmp_path / "data with spaces")
    directory.prepare()
    server = PostgresServer(directory)
    try:
        server.start()
        assert tmp_path not in server.data.parents
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (id int)")
        server.stop()
        again = PostgresServer(directory)
        again.start()
        assert again.data == server.data
        with psycopg.connect(again.url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        again.stop()
    finally:
        server.kill()
        shutil.rmtree(server.data.parent)
    with pytest.raises(ConfigurationError, match="is not there"):
        PostgresServer(directory).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to drop privileges")
def test_root_copies_the_programs_that_the_unprivileged_user_cannot_reach(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = directory.path / "elsewhere"
    reaches = Account.can_run
    monkeypatch.setattr(postgres_home, "_ELSEWHERE", (place,))
    monkeypatch.setattr(Account, "can_run", lambda self, path: place in path.parents and reaches(self, path))
    server = PostgresServer(directory)
    try:
        server.start()
        assert server.pid is not None
        assert place in Path(psutil.Process(server.pid).exe()).parents
        assert psutil.Process(server.pid).uids().real != 0
    finally:
        server.kill()
    (copy,) = place.iterdir()
    assert postgres_home.find_postgres_home(directory).programs.is_relative_to(copy)


def queue_is_registered(directory: DataDirectory, queue: str) -> bool:
    """Whether RabbitMQ wrote down that it hosts this quorum queue: it takes up to a second to do so.

    Killed within that second, RabbitMQ 3.10 cannot recover the queue (its directory of members is a
    table that is saved every half second).
    """
    tables = (directory.path / "rabbitmq" / "mnesia").glob("*/quorum/*/names.dets")
    return any(queue.encode() in table.read_bytes() for table in tables)


def test_rabbitmq_keeps_durable_messages_over_a_kill(directory: DataDirectory) -> None:
    require(find_rabbitmq)
    server = RabbitMQServer(directory)
    try:
        server.start()
        with Connection(server.url, transport_options={"confirm_publish": True}) as connection:
            queue = connection.SimpleQueue("kept", queue_args={"x-queue-type": "quorum"})
            queue.put({"n": 1})
            queue.close()
        wait_until(lambda: queue_is_registered(directory, "kept"))
        kill(server.pid)
        wait_until(lambda: not server.is_alive())
        server.start()
        with Connection(server.url) as connection:
            queue = connection.SimpleQueue("kept", queue_args={"x-queue-type": "quorum"})
            message = queue.get(timeout=10)
            assert message.payload == {"n": 1}
            queue.close()
    finally:
        server.kill()


def test_redis_is_bounded_and_forgets(directory: DataDirectory) -> None:
    require(find_redis)
    server = RedisServer(directory)
    try:
        server.start()
        client = redis.Redis.from_url(server.url, decode_responses=True)
        settings = client.config_get("maxmemory*")
        client.close()
        assert settings["maxmemory-policy"] == "allkeys-lru"
        assert settings["maxmemory"] != "0"
    finally:
        server.kill()
