"""Jobs that kill their worker and messages that nobody can read, on a real worker and a real RabbitMQ."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from consumers.main import consume
from deploy.server import is_running
from models.ids import new_id
from models.job import Priority
from tasks.announcer import Announcer
from tasks.names import DEAD_MESSAGES
from tests.integration.test_worker import running_worker
from tests.kit.platform import Platform
from tests.kit.tickets import HELD, LETHAL
from tests.kit.waiting import wait_until


@contextmanager
def running_consumer(platform: Platform, broker_url: str) -> Iterator[None]:
    stopping = threading.Event()
    settings = platform.settings.model_copy(update={"broker_url": broker_url})
    thread = threading.Thread(target=consume, args=(settings, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture
def announcer(app: Celery) -> Iterator[Announcer]:
    made = Announcer(app)
    yield made
    made.close()


def kept(platform: Platform) -> list[Any]:
    return platform.rows(
        "SELECT queue, reason, task, ids, findings, body FROM dead_messages ORDER BY collected_at, id"
    )


_HASTY = "from tasks import own_code; own_code.LIMIT_SECONDS = 2.0\n"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("note", "cause"),
    [(LETHAL, "SIGKILL"), (f"{HELD}{{tmp_path}}/never", "SIGALRM")],
    ids=["kills it", "never returns"],
)
def test_job_that_takes_its_worker_ends_dead_with_the_evidence_and_its_neighbours_unharmed(
    platform: Platform, broker_url: str, announcer: Announcer, tmp_path: Path, note: str, cause: str
) -> None:
    lethal = platform.ticket(str(new_id()), note=note.format(tmp_path=tmp_path))
    neighbours = [platform.create() for _ in range(6)]
    ids = platform.accept(*neighbours[:3], lethal, *neighbours[3:])
    with running_worker(platform, broker_url, tmp_path / "worker.log", _HASTY):
        announcer.jobs({Priority.NORMAL: ids})
        wait_until(lambda: platform.job(lethal.job_id).is_done, timeout_seconds=120)
        wait_until(lambda: all(platform.job(one).is_done for one in ids), timeout_seconds=60)
    assert {platform.job(one.job_id).state for one in neighbours} == {"succeeded"}
    assert {platform.job(one.job_id).attempt for one in neighbours} == {1}
    dead = platform.job(lethal.job_id)
    assert dead.state == "dead"
    assert dead.error is not None
    evidence = dead.error["evidence"]
    assert [entry["signal"] for entry in evidence] == [cause] * 3
    assert len({entry["worker"] for entry in evidence}) == 3
    assert all(entry["at"].endswith("Z") for entry in evidence)
    assert dead.attempts is not None
    assert cause in dead.attempts[-1]["reason"]


def test_message_that_celery_cannot_read_is_kept_and_harms_no_worker(
    platform: Platform, broker_url: str, announcer: Announcer, tmp_path: Path
) -> None:
    platform.rows("DELETE FROM dead_messages")
    header = {"lang": "py", "task": "waybill.apply", "id": str(new_id())}
    known = platform.made(platform.create())[0].id
    unreadable: list[tuple[bytes, str, dict[str, Any]]] = [
        (b"\xff\xfe not json", "application/json", header),
        (b"\x80\x04N.", "application/x-python-serialize", header),
        (b"17", "application/json", header),
        (b"[]", "application/json", header),
        (b"{}", "application/json", {}),
        (b"plain", "text/plain", {}),
        (json.dumps([[[str(known)]], {}, {}]).encode(), "application/json", header | {"task": "unknown"}),
        (json.dumps([[["no-id"]], {}, {}]).encode(), "application/json", header),
        (
            json.dumps([[[str(known), str(new_id())], "one too many"], {}, {}]).encode(),
            "application/json",
            header,
        ),
    ]
    with (
        running_worker(platform, broker_url, tmp_path / "worker.log") as worker,
        running_consumer(platform, broker_url),
    ):
        with Connection(broker_url) as connection, connection.Producer() as producer:
            for body, content_type, headers in unreadable:
                producer.publish(
                    body,
                    routing_key="waybill.jobs",
                    content_type=content_type,
                    content_encoding="utf-8" if "json" in content_type else "binary",
                    headers=headers,
                )
        wait_until(lambda: len(kept(platform)) == len(unreadable), timeout_seconds=60)
        (after,) = platform.accept(platform.create())
        announcer.jobs({Priority.NORMAL: [after]})
        wait_until(lambda: platform.job(after).state == "succeeded", timeout_seconds=30)
        assert is_running(worker)
    rows = kept(platform)
    assert {(row.queue, row.reason) for row in rows} == {("waybill.jobs", "rejected")}
    assert {bytes(row.body) for row in rows} == {body for body, _, _ in unreadable}
    last = next(row for row in rows if bytes(row.body) == unreadable[-1][0])
    assert (last.task, last.findings) == ("waybill.apply", {"succeeded": 1, "unknown": 1})


def test_message_that_the_broker_gave_up_on_makes_its_jobs_suspects_and_is_kept_once(
    platform: Platform, broker_url: str
) -> None:
    platform.rows("DELETE FROM dead_messages")
    (job,) = platform.accept(platform.create())
    headers = {
        "task": "waybill.apply",
        "id": "one",
        "x-death": [{"queue": "waybill.jobs", "reason": "delivery_limit", "count": 1}],
        "nul": "\x00",
    }
    with Connection(broker_url) as connection, connection.Producer() as producer:
        for _ in range(2):  # as when a collector dies between its commit and its acknowledgement
            producer.publish(
                [[[str(job)]], {}, {}],
                exchange=DEAD_MESSAGES,
                routing_key="",
                headers=headers,
                serializer="json",
            )
        with running_consumer(platform, broker_url):
            queue = connection.default_channel
            wait_until(
                lambda: (
                    queue.queue_declare(DEAD_MESSAGES, passive=True).message_count == 0 and kept(platform)
                ),
                timeout_seconds=30,
            )
    (row,) = kept(platform)
    assert (row.reason, row.ids, row.findings) == ("delivery_limit", [job], {"queued": 1})
    ((announcements, is_due),) = platform.rows(
        "SELECT announcements, announce_at <= now() FROM jobs WHERE id = :id", id=job
    )
    assert (announcements >= 6, is_due) == (True, True)
