"""A demo survives kill -9 of a worker and of RabbitMQ; and the checker that says so can fail."""

from collections.abc import Iterator

import pytest

from deploy.data_directory import DataDirectory
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from deploy.redis_server import RedisServer, find_redis
from models.ids import new_id
from tests.chaos import ledger as ledger_check
from tests.chaos import seed
from tests.kit.platform import Platform, running_platform
from tests.kit.servers import require, temporary_data_directory

JOBS = 3000


@pytest.fixture
def directory() -> Iterator[DataDirectory]:
    with temporary_data_directory() as made:
        yield made
        for server in (RabbitMQServer, RedisServer, PostgresServer):
            server(made).kill()


@pytest.mark.timeout(600)
def test_every_job_ends_once_and_succeeds_though_worker_and_broker_are_killed(
    directory: DataDirectory,
) -> None:
    require(find_rabbitmq)
    require(find_redis)

    result = seed.run(directory, JOBS, say=print)

    assert result.demo_status == 0, result.demo_output
    assert f"succeeded: {JOBS} says the API, {JOBS} says the ledger, of {JOBS}" in result.demo_output
    assert [kind for kind, _ in result.killed] == ["worker", "rabbitmq"]
    assert result.demo_output.count('"message": "process restarted"') >= 2
    assert result.violations == ()


@pytest.fixture(scope="module")
def ledger(database_url: str) -> Iterator[Platform]:
    with running_platform(database_url) as platform:
        yield platform


def test_checker_lets_a_redriven_job_end_once_a_generation(ledger: Platform) -> None:
    ledger.end_everything()
    ledger.rows("DELETE FROM entities")
    ledger.rows("DELETE FROM idempotency_keys")
    ledger.made(ledger.create(str(new_id())))
    ledger.rows("UPDATE jobs SET generation = 2")
    ledger.rows(
        "INSERT INTO job_events (sequence, job_id, state, at, detail) "
        """SELECT -2, id, 'dead', now(), CAST('{"generation": 1}' AS jsonb) FROM jobs UNION ALL """
        """SELECT -1, id, 'queued', now(), CAST('{"generation": 2}' AS jsonb) FROM jobs"""
    )
    ledger.rows(
        "INSERT INTO deliveries (id, kind, sequences, state) "
        "VALUES (gen_random_uuid(), 'events', '{-2}', 'delivered')"
    )

    assert list(ledger_check.violations(ledger.settings.database_url)) == []


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        ("UPDATE jobs SET state = 'queued'", "without a final state"),
        ("UPDATE jobs SET announce_at = now()", "still to be announced"),
        (
            "INSERT INTO job_events (sequence, job_id, state, at) "
            "SELECT nextval('job_sequence'), id, 'succeeded', now() FROM jobs",
            "did not end exactly once",
        ),
        ("DELETE FROM job_events WHERE state = 'succeeded'", "did not end exactly once"),
        ("UPDATE jobs SET generation = 2", "did not end exactly once"),
        (
            "INSERT INTO job_events (sequence, job_id, state, at, detail) "
            "SELECT nextval('job_sequence'), id, 'queued', now(), '{\"generation\": 2}' FROM jobs",
            "moved on after their end",
        ),
        (
            "INSERT INTO job_events (sequence, job_id, state, at) "
            "SELECT nextval('job_sequence'), id, 'queued', now() FROM jobs",
            "moved on after their end",
        ),
        ("DELETE FROM entities", "creates without their entity"),
        ("DELETE FROM jobs", "entities without exactly one create"),
        ("UPDATE entities SET version = 2", "version is not the number of their effects"),
        (
            "INSERT INTO idempotency_keys (principal_id, door, key, fingerprint, job_id) "
            "SELECT principal_id, 'http', k, '', id FROM jobs, unnest(ARRAY['a', 'b']) k",
            "not one job's",
        ),
        ("DELETE FROM deliveries", "not handed to the outbox exactly once"),
        ("UPDATE deliveries SET state = 'failed'", "deliveries that failed"),
    ],
)
def test_checker_finds_planted_damage(ledger: Platform, damage: str, rule: str) -> None:
    ledger.end_everything()
    ledger.rows("DELETE FROM entities")
    ledger.rows("DELETE FROM idempotency_keys")
    ledger.made(ledger.create(str(new_id())))
    url = ledger.settings.database_url
    assert list(ledger_check.violations(url)) == []

    ledger.rows(damage)

    assert any(rule in line for line in ledger_check.violations(url))
