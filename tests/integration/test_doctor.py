"""``waybill doctor``: names each part, and a remedy for each that is ill."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from kombu import Connection

from deploy.data_directory import DataDirectory
from deploy.doctor import Finding, examine
from deploy.doctor_command import doctor
from deploy.ports import free_port
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer
from deploy.redis_server import RedisServer
from models.settings import Settings, load_settings
from tasks.topology import declare
from tests.kit.launched import ended, launched
from tests.kit.rabbitmqctl import rabbitmqctl
from tests.kit.servers import temporary_data_directory
from tests.kit.waiting import wait_until


@pytest.fixture
def directory() -> Iterator[DataDirectory]:
    with temporary_data_directory() as made:
        yield made
        PostgresServer(made).kill()


def findings(settings: Settings) -> dict[str, Finding]:
    return {finding.part: finding for finding in examine(settings)}


def test_nothing_running_is_said_with_remedies(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "none",
        database_url=f"postgresql://u:geheim@127.0.0.1:{free_port()}/w",
        broker_url=f"amqp://u:geheim@127.0.0.1:{free_port()}//",
        broker_api_url=f"http://u:geheim@127.0.0.1:{free_port()}/api/",
        redis_url=f"redis://:geheim@127.0.0.1:{free_port()}/0",
        api_port=free_port(),
        flower_port=free_port(),
    )
    found = findings(settings)
    ill = {part for part, finding in found.items() if not finding.is_well}
    assert ill == set(found) - {"up"}
    assert {"schema", "queues"} <= ill
    assert all(found[part].remedy for part in ill)
    assert "geheim" not in str(found)


def test_real_servers_are_well(
    postgres: PostgresServer, rabbitmq: RabbitMQServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        database_url=postgres.url,
        broker_url=rabbitmq.url,
        broker_api_url=rabbitmq.api_url,
        redis_url=redis_server.url,
    )
    found = findings(settings)
    assert {
        part for part in ("data", "database", "broker", "broker-api", "redis") if found[part].is_well
    } == {
        "data",
        "database",
        "broker",
        "broker-api",
        "redis",
    }
    assert "RabbitMQ" in found["broker"].detail


def test_queue_that_nobody_leads_is_named_with_the_command_that_mends_it(directory: DataDirectory) -> None:
    broker = RabbitMQServer(directory)

    def told() -> list[Finding]:
        settings = Settings(
            data_dir=directory.path, broker_url=broker.url, broker_api_url=broker.api_url, database_url=""
        )
        return [one for one in examine(settings) if one.part == "members"]

    try:
        broker.start()
        with Connection(broker.url) as connection:
            declare(connection)
            assert told() == []
            rabbitmqctl(broker, "eval", "ra:stop_server(quorum_queues, {'waybill_waybill.jobs', node()}).")
            (finding,) = told()
            assert not finding.is_well
            assert "waybill.jobs has no leader" in finding.detail
            command = re.search(r"rabbitmqctl (-p waybill \S+ waybill\.jobs)", finding.remedy)
            assert command
            rabbitmqctl(broker, *command.group(1).split())
            declare(connection)
        assert told() == []
    finally:
        broker.kill()


def test_command_names_pids_and_logs_of_what_up_runs(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_DATA_DIR", str(directory.path))
    with launched(directory) as up:
        up.wait_ready()
        result = CliRunner().invoke(doctor)
        assert result.exit_code == 1  # the stand-in serves no Flower
        assert f"pid {up.process.pid}" in result.output
        assert str(directory.log_file("postgres")) in result.output
        assert "is ready" in result.output
        wrong = [line.split()[1] for line in result.output.splitlines() if line.startswith("WRONG")]
        assert wrong == ["flower"]

        before = up.processes()
        os.kill(up.process.pid, signal.SIGKILL)
        up.process.wait()
        wait_until(lambda: ended(before["api"][0]))
        gone = findings(load_settings())
        assert "is gone" in gone["up"].detail
        assert not gone["api"].is_well
