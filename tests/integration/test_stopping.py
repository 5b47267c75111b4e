"""Every kind of process, told to stop by SIGTERM in the middle of its work, and told again. All are real."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3
from celery import Celery
from kombu import Connection as BrokerConnection
from kombu import Exchange, Producer
from sqlalchemy import text

from deploy.data_directory import DataDirectory
from deploy.ports import free_port
from deploy.redis_server import RedisServer
from deploy.server import is_running
from models.identity.users import hash_password
from models.ids import new_id
from models.job import Priority
from tasks.announcer import Announcer
from tasks.names import DELIVERIES_QUEUE, INTAKE, JOB_QUEUES
from tests.kit.delivering import Endpoint, deliveries
from tests.kit.launched import launched_whole
from tests.kit.platform import Platform
from tests.kit.process_node import python, worker_environment
from tests.kit.receiver import WebhookReceiver, answer
from tests.kit.servers import temporary_data_directory
from tests.kit.tickets import HELD
from tests.kit.waiting import wait_until

MOST_SECONDS = 60
"""Twice of what is promised: the machine may be busy."""
_PLAIN = ("-P", "-m", "deploy.cli")
_WITH_DEADLINE = (
    "import sys; from models.stop_deadline import StopDeadline; "
    "StopDeadline.__init__.__defaults__ = (float(sys.argv.pop(1)),); from deploy.cli import main; main()"
)
_WITH_PATIENCE = """
from tornado.httpclient import AsyncHTTPClient
fetch = AsyncHTTPClient.fetch
AsyncHTTPClient.fetch = lambda self, url, **how: fetch(
    self, url, **{**how, "connect_timeout": 60, "request_timeout": 60}
)
from deploy.cli import main
main()
"""
"""Flower gives the broker's API two seconds, in which a busy machine answers late."""
PASSWORD = "correct horse battery staple"
pytestmark = pytest.mark.timeout(600)


@dataclass
class AtWork:
    """A process in the middle of something.

    Attributes:
        process: To be told to stop.
        go_on: Lets it finish what it is at; done once it has been told.
        look: Asserts that nothing was lost and nothing done twice; done once it has ended.
    """

    process: Any
    go_on: Callable[[], None] = lambda: None
    look: Callable[[], None] = lambda: None


class Scene:
    """Servers, a ledger, and processes on them."""

    def __init__(self, platform: Platform, app: Celery, redis_url: str, folder: Path) -> None:
        self.platform = platform
        self.app = app
        self.broker_url = app.conf.broker_url
        self.folder = folder
        self.gate = folder / "gate"
        self.api_port, self.flower_port = free_port(), free_port()
        self._settings = {
            "WAYBILL_DATABASE_URL": platform.settings.database_url,
            "WAYBILL_BROKER_URL": self.broker_url,
            "WAYBILL_REDIS_URL": redis_url,
            "WAYBILL_DATA_DIR": str(platform.settings.data_dir),
            "WAYBILL_RESOURCES": "tests.kit.tickets",
            "WAYBILL_API_PORT": str(self.api_port),
            "WAYBILL_FLOWER_PORT": str(self.flower_port),
            "WAYBILL_CALLBACK_ALLOW_PRIVATE": "1",
            "WAYBILL_RATE_LIMITS": "off",
            "WAYBILL_AMQP_PRINCIPALS": json.dumps({"waybill": "ada@example.org"}),
        }

    @contextmanager
    def running(
        self, *command: str, program: Sequence[str] = _PLAIN, settings: Mapping[str, str] = {}
    ) -> Iterator[psutil.Popen]:
        """``waybill …`` as a process; at the end nothing of it is left, whatever happened."""
        output = self.folder / "output"
        with output.open("a") as stream:
            process = psutil.Popen(
                python(*program, *command),
                env=worker_environment({**self._settings, **settings}),
                cwd=self.folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            family = [process, *process.children(recursive=True)] if is_running(process) else []
            for one in family:
                if is_running(one):
                    one.kill()
            process.wait()
            print(output.read_text())  # noqa: T201 - pytest shows it when the test fails

    def held_ticket(self, *, is_announced: bool = True) -> Any:
        """The id of a job that does not end before the gate is opened."""
        (job,) = self.platform.accept(self.platform.ticket(str(new_id()), note=f"{HELD}{self.gate}"))
        if is_announced:
            self.announce(job)
        return job

    def announce(self, job: Any) -> None:
        announcer = Announcer(self.app)
        announcer.jobs({Priority.NORMAL: [job]})
        announcer.close()

    def wait_held(self) -> None:
        note = self.gate.with_suffix(".pid")
        wait_until(lambda: note.exists() and note.read_text(), timeout_seconds=90, what="the job is at work")

    def is_applied_once(self, job: Any) -> None:
        assert self.platform.job(job).state == "succeeded"
        assert self.platform.job(job).version == 1
        assert self.platform.events(job) == ["queued", "succeeded"]

    def is_given_back(self, job: Any) -> None:
        """It is as it was, and whoever comes next applies it."""
        assert self.platform.events(job) == ["queued"]
        self.gate.touch()
        wait_until(
            lambda: self.platform.applier().apply([job]) and self.platform.job(job).is_done,
            timeout_seconds=30,
            what="it is applied by another",
        )
        self.is_applied_once(job)

    def depth(self, queue: str) -> int:
        """Messages that wait in a queue, and nobody has in hand."""
        with BrokerConnection(self.broker_url) as connection:
            declared = connection.default_channel.queue_declare(queue, passive=True)
            return int(declared.message_count)

    @contextmanager
    def locked(self, statement: str) -> Iterator[Callable[[], None]]:
        """Hold a lock; what comes back lets it go and may be called once or never."""
        with self.platform.database.engine.connect() as connection:
            connection.execute(text(statement))
            yield connection.rollback

    def is_somebody_waiting(self) -> bool:
        return bool(self.platform.rows("SELECT 1 FROM pg_locks WHERE NOT granted LIMIT 1"))

    def admin_headers(self) -> dict[str, str]:
        """With which a new admin passes Flower's door."""
        email = f"{new_id()}@example.org"
        with self.platform.database.transaction() as connection:
            role = self.platform.admin.role
            self.platform.container.users.add(connection, email, hash_password(PASSWORD), role)
        return urllib3.make_headers(basic_auth=f"{email}:{PASSWORD}")

    def token(self) -> str:
        return self.platform.container.tokens.issue(self.platform.ada)


@pytest.fixture
def scene(platform: Platform, app: Celery, redis_server: RedisServer, tmp_path: Path) -> Scene:
    return Scene(platform, app, redis_server.url, tmp_path)


# ---- the kinds ---------------------------------------------------------------------------


@contextmanager
def api_with_a_waiting_client(scene: Scene) -> Iterator[AtWork]:
    """It has been asked to wait for a job that nobody applies."""
    answers: list[urllib3.BaseHTTPResponse] = []
    headers = {"Authorization": f"Bearer {scene.token()}", "Content-Type": "application/json"}

    def ask() -> None:
        url = f"http://127.0.0.1:{scene.api_port}/api/v1/entities"
        sent = {**headers, "Prefer": "wait=30", "Idempotency-Key": "once"}
        answers.append(urllib3.request("POST", url, json={"name": "a"}, headers=sent, retries=False))

    with scene.running("api") as process:
        client = threading.Thread(target=ask, daemon=True)
        wait_until(lambda: _listens(scene.api_port), timeout_seconds=90, what="the API listens")
        client.start()
        wait_until(lambda: scene.platform.rows("SELECT 1 FROM jobs"), timeout_seconds=30)

        def look() -> None:
            client.join(10)
            assert (answers[0].status, answers[0].headers["retry-after"]) == (202, "1")
            assert scene.platform.rows("SELECT state FROM jobs") == [("queued",)]

        yield AtWork(process, look=look)


@contextmanager
def worker_with_a_long_job(scene: Scene) -> Iterator[AtWork]:
    """The job ends after the signal, so it is finished."""
    job = scene.held_ticket()
    with scene.running("worker") as process:
        scene.wait_held()
        yield AtWork(process, go_on=scene.gate.touch, look=lambda: scene.is_applied_once(job))


@contextmanager
def worker_with_an_endless_job(scene: Scene) -> Iterator[AtWork]:
    """The job does not end, so it is given back, and its message too."""
    job = scene.held_ticket()
    with scene.running("worker", program=("-c", _WITH_DEADLINE, "5")) as process:
        scene.wait_held()

        def look() -> None:
            wait_until(lambda: scene.depth(JOB_QUEUES[Priority.NORMAL]) > 0, what="the message is back")
            scene.is_given_back(job)

        yield AtWork(process, look=look)


@contextmanager
def worker_before_a_held_lane(scene: Scene) -> Iterator[AtWork]:
    """Somebody else holds the lane of the job that was announced."""
    submission = scene.platform.ticket(str(new_id()))
    (job,) = scene.platform.accept(submission)
    with (
        scene.locked(f"SELECT pg_advisory_xact_lock({submission.lane})") as let_go,
        scene.running("worker") as process,
    ):
        scene.announce(job)
        wait_until(scene.is_somebody_waiting, timeout_seconds=90, every_seconds=0.01, what="it waits")

        def look() -> None:
            let_go()
            scene.is_given_back(job)

        yield AtWork(process, look=look)


@contextmanager
def worker_with_a_slow_callback(scene: Scene) -> Iterator[AtWork]:
    """On threads; the receiver has the request and answers late."""
    with (
        WebhookReceiver() as receiver,
        scene.running("worker", "--queues", DELIVERIES_QUEUE, "--pool", "threads") as process,
    ):
        receiver.will(answer(204, delay_seconds=3))
        endpoint = Endpoint(scene.platform, receiver.url())
        scene.platform.made(scene.platform.create(callback_endpoint_id=endpoint.id))
        receiver.wait_for(1, 90)

        def look() -> None:
            assert [(row.state, row.attempts) for row in deliveries(scene.platform)] == [("delivered", 1)]
            assert len(receiver.requests) == 1

        yield AtWork(process, look=look)


@contextmanager
def consumer_with_a_batch_in_hand(scene: Scene) -> Iterator[AtWork]:
    """The ledger takes nothing, so the message goes back; the next consumer makes one job of it."""
    with (
        scene.locked("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE") as let_go,
        scene.running("consumer") as process,
    ):
        _publish(scene, "only-once")
        wait_until(scene.is_somebody_waiting, timeout_seconds=90, what="it has the message")

        def look() -> None:
            wait_until(lambda: scene.depth(INTAKE) == 1, what="the message is back")
            let_go()
            with scene.running("consumer") as another:
                wait_until(lambda: scene.platform.rows("SELECT 1 FROM jobs"), timeout_seconds=90)
                another.terminate()
                assert another.wait(MOST_SECONDS) == 0
            assert scene.platform.rows("SELECT count(*) FROM jobs") == [(1,)]
            assert scene.depth(INTAKE) == 0

        yield AtWork(process, look=look)


@contextmanager
def flower_with_a_log_in(scene: Scene) -> Iterator[AtWork]:
    """An admin is at its door while the table of users is locked."""
    headers = scene.admin_headers()
    statuses: list[int] = []

    def ask() -> None:
        url = f"http://127.0.0.1:{scene.flower_port}/workers"
        statuses.append(urllib3.request("GET", url, headers=headers, retries=False, timeout=30).status)

    with scene.running("flower") as process:
        wait_until(lambda: _listens(scene.flower_port), timeout_seconds=90, what="Flower listens")
        with scene.locked("LOCK TABLE users IN ACCESS EXCLUSIVE MODE") as let_go:
            client = threading.Thread(target=ask, daemon=True)
            client.start()
            wait_until(scene.is_somebody_waiting, timeout_seconds=30, what="somebody logs in")

            def look() -> None:
                client.join(20)
                assert statuses == [200] or statuses == [401]  # the lock may have lasted too long

            yield AtWork(process, go_on=let_go, look=look)


@contextmanager
def flower_with_a_slow_page(scene: Scene) -> Iterator[AtWork]:
    """Its page of queues waits for the broker's management API."""
    headers, pages = scene.admin_headers(), []

    def ask() -> None:
        url = f"http://127.0.0.1:{scene.flower_port}/broker"
        pages.append(urllib3.request("GET", url, headers=headers, retries=False, timeout=30))

    with WebhookReceiver() as broker_api:
        depth = [{"name": INTAKE, "messages": 471}]
        broker_api.will(answer(200, json.dumps(depth).encode(), delay_seconds=1.5))
        settings = {"WAYBILL_BROKER_API_URL": broker_api.url("/api/")}
        with scene.running("flower", program=("-c", _WITH_PATIENCE), settings=settings) as process:
            wait_until(lambda: _listens(scene.flower_port), timeout_seconds=90, what="Flower listens")
            client = threading.Thread(target=ask, daemon=True)
            client.start()
            broker_api.wait_for(1, 30)

            def look() -> None:
                client.join(20)
                assert pages[0].status == 200
                assert b"471" in pages[0].data

            yield AtWork(process, look=look)


@contextmanager
def node_with_a_long_job(scene: Scene) -> Iterator[AtWork]:
    """Everything in one process."""
    job = scene.held_ticket(is_announced=False)
    embedded = {"WAYBILL_BROKER_URL": "", "WAYBILL_REDIS_URL": ""}
    with scene.running("node", settings=embedded) as process:
        scene.wait_held()
        yield AtWork(process, go_on=scene.gate.touch, look=lambda: scene.is_applied_once(job))


@contextmanager
def up_with_a_long_job(scene: Scene) -> Iterator[AtWork]:
    """The launcher, as users start it."""
    job = scene.held_ticket(is_announced=False)
    with temporary_data_directory() as made:
        directory = DataDirectory(made.path)
        settings = {
            "WAYBILL_DATABASE_URL": scene.platform.settings.database_url,
            "WAYBILL_RESOURCES": "tests.kit.tickets",
        }
        with launched_whole(directory, **settings) as up:
            scene.wait_held()
            up.wait_ready()

            def look() -> None:
                scene.is_applied_once(job)
                assert up.processes() == {}

            yield AtWork(psutil.Process(up.process.pid), go_on=scene.gate.touch, look=look)


def _listens(port: int) -> bool:
    try:
        urllib3.request("GET", f"http://127.0.0.1:{port}/", retries=False, timeout=30)
    except urllib3.exceptions.HTTPError:
        return False
    return True


def _publish(scene: Scene, message_id: str) -> None:
    with BrokerConnection(scene.broker_url) as connection:
        wait_until(lambda: _is_consumed(connection), timeout_seconds=90, what="the consumer consumes")
        Producer(connection).publish(
            b'{"name": "upstream"}',
            exchange=Exchange(INTAKE, no_declare=True),
            routing_key="entities.create",
            message_id=message_id,
            user_id="waybill",
            content_type="application/json",
            content_encoding="utf-8",
            headers={},
        )


def _is_consumed(connection: BrokerConnection) -> bool:
    try:
        declared = connection.default_channel.queue_declare(INTAKE, passive=True)
    except connection.channel_errors:
        connection.release()  # there is no such queue yet, which closes the channel
        return False
    return bool(declared.consumer_count)


KINDS: tuple[Callable[[Scene], AbstractContextManager[AtWork]], ...] = (
    api_with_a_waiting_client,
    worker_with_a_long_job,
    worker_with_an_endless_job,
    worker_before_a_held_lane,
    worker_with_a_slow_callback,
    consumer_with_a_batch_in_hand,
    flower_with_a_log_in,
    flower_with_a_slow_page,
    node_with_a_long_job,
    up_with_a_long_job,
)


def _ask_again(process: Any) -> None:
    """Further signals, to the very last moment."""
    while is_running(process):
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(psutil.Error):
                process.send_signal(number)
        time.sleep(0.05)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_told_to_stop_it_ends_in_time_and_nothing_is_lost_or_done_twice(
    scene: Scene, kind: Callable[[Scene], AbstractContextManager[AtWork]]
) -> None:
    with kind(scene) as at_work:
        process = at_work.process
        family = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            time.sleep(0.2)  # one after the other: signals that wait are one
            if is_running(process):
                process.send_signal(number)
        at_work.go_on()
        threading.Thread(target=_ask_again, args=(process,), daemon=True).start()
        assert process.wait(MOST_SECONDS) == 0
        assert [one for one in family if is_running(one)] == []
        at_work.look()
