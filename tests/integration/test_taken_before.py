"""Upstream messages that come again after their consumer was lost between commit and acknowledgement.

What is a job already is answered as that job, though by now it would be refused: it has expired, or its
sender may no longer send.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models import failpoints
from models.identity.principals import Role
from tests.kit.intake import IntakePlatform, intake_platform
from tests.kit.upstream import Broker
from tests.kit.waiting import wait_until


@pytest.fixture(scope="module")
def platform(
    broker: Broker, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IntakePlatform]:
    broker.add_user("sender")
    data_dir = tmp_path_factory.mktemp("data")
    with intake_platform(broker, database_url, data_dir, {"sender": "sender@example.com"}) as platform:
        with platform.container.database.transaction() as connection:
            platform.container.users.add(connection, "sender@example.com", "-", Role.USER)
        platform.stop()
        yield platform


@pytest.fixture(autouse=True)
def _stopped(platform: IntakePlatform) -> Iterator[None]:
    change_sender(platform, "role = 'user', is_disabled = false")
    yield
    platform.stop()


def change_sender(platform: IntakePlatform, change: str) -> None:
    with platform.container.database.transaction() as connection:
        connection.exec_driver_sql(f"UPDATE users SET {change} WHERE email = 'sender@example.com'")  # noqa: S608


def take_in_and_crash(platform: IntakePlatform, folder: Path, publish: Any) -> str:
    """Have a consumer take in what ``publish`` sends, and killed before it acknowledges; the message id."""
    (folder / "after-take-in").touch()
    with platform.spawn(**{failpoints.VARIABLE: str(folder)}) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["message"] == "consuming upstream messages"
        message_id = str(publish())
        assert process.wait(timeout=30) < 0
    return message_id


def test_message_that_expired_after_it_was_taken_is_its_job(
    platform: IntakePlatform, broker: Broker, tmp_path: Path
) -> None:
    upstream = platform.upstream
    publish = lambda: upstream.publish("entities.create", {"name": "in time"}, expiration="1000")  # noqa: E731
    message_id = take_in_and_crash(platform, tmp_path, publish)
    wait_until(
        lambda: broker.unsettled("waybill.intake.expired") == 1,
        timeout_seconds=60,
        what="expired by the broker",
    )
    platform.start()

    reply = upstream.reply(message_id)
    assert reply.properties.type == "job.accepted"
    assert reply.headers["x-job-id"] == str(platform.job_of(message_id).id)
    assert broker.unsettled("waybill.dead") == 0


@pytest.mark.parametrize("has_token", [False, True], ids=["by broker user", "by token"])
@pytest.mark.parametrize("change", ["role = 'guest'", "is_disabled = true", "tokens_valid_from = now()"])
def test_message_whose_sender_was_shut_out_after_it_was_taken_is_its_job(
    platform: IntakePlatform, broker: Broker, tmp_path: Path, change: str, has_token: bool
) -> None:
    sender = broker.connect("sender")
    with platform.container.database.snapshot() as connection:
        user = platform.container.users.by_email(connection, "sender@example.com")
    assert user is not None
    token = platform.container.tokens.issue(user.principal, not_before=user.tokens_valid_from)
    headers = {"authorization": f"Bearer {token}"} if has_token else None

    def publish(**properties: Any) -> str:
        return sender.publish("entities.create", {"name": "allowed"}, headers=headers, **properties)

    message_id = take_in_and_crash(platform, tmp_path, publish)
    change_sender(platform, change)
    platform.start()

    reply = sender.reply(message_id)
    assert reply.properties.type == "job.accepted"
    assert reply.headers["x-job-id"] == str(platform.job_of(message_id).id)
    if change != "tokens_valid_from = now()" or has_token:  # a new copy is another matter
        publish(message_id=message_id)
        assert sender.reply(message_id).document["status"] in (401, 403)
        platform.upstream.dead_letter(message_id)
    sender.close()


def test_other_message_under_its_id_is_not_its_job(
    platform: IntakePlatform, broker: Broker, tmp_path: Path
) -> None:
    upstream = platform.upstream
    publish = lambda: upstream.publish("entities.create", {"name": "one"})  # noqa: E731
    message_id = take_in_and_crash(platform, tmp_path, publish)
    upstream.publish("entities.create", {"name": "other"}, message_id=message_id, expiration="1")
    platform.start()

    replies = [upstream.reply(message_id) for _ in range(2)]
    assert sorted(one.properties.type for one in replies) == ["job.accepted", "job.rejected"]
    upstream.dead_letter(message_id)
