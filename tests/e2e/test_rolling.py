"""Everything restarted, one after the other, under load and behind nginx: no client sees anything of it."""

import json
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pika
import psutil
import pytest
import urllib3
from pika.exceptions import AMQPError
from sqlalchemy import text
from websockets.sync.client import connect

from deploy import schema
from deploy.ports import free_port
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from deploy.readiness import ask_ready
from deploy.redis_server import RedisServer, find_redis
from deploy.server import is_running
from models.container import Container
from models.settings import Settings
from tasks.names import DELIVERIES_QUEUE, JOB_QUEUES
from tests.e2e.conftest import ADMIN, PASSWORD
from tests.kit.client import Client
from tests.kit.gateway import find_nginx, gateway, rendered
from tests.kit.process_node import python, worker_environment
from tests.kit.receiver import WebhookReceiver
from tests.kit.servers import fresh_database, require, running, temporary_data_directory
from tests.kit.waiting import wait_until

LONG = 300.0
"""Seconds that a start may take: the machine may be busy."""
MOST_SECONDS_TO_STOP = 60
"""For the same reason twice of what is promised."""
PASSED_OVER_SECONDS = 2.0
"""So long nginx may pass over a process that is back: the README tells to wait before the next restart."""
WRITERS = 3
WRITERS_WITHOUT_KEY = 2
_JOBS = ",".join(JOB_QUEUES.values())


class Member:
    """One process of the fleet, restarted as Kubernetes does it: SIGTERM, its end, a new one, ready.

    Args:
        command: ``waybill …``.
        environment: Of it.
        folder: Where it writes what it says.
        is_ready: Told what it has said in its present life.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        is_ready: Callable[[str], bool],
    ) -> None:
        self.name = "-".join(command).replace(",", "-")
        self._command = python("-P", "-m", "deploy.cli", *command)
        self._environment = dict(environment)
        self._output = folder / f"{uuid.uuid4().hex}.log"
        self._is_ready = is_ready
        self._process: psutil.Popen | None = None

    def start(self) -> None:
        """Begin."""
        with self._output.open("w") as stream:
            self._process = psutil.Popen(
                self._command, env=self._environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def wait_ready(self) -> None:
        """Until it does its work."""
        assert self._process is not None
        process = self._process
        wait_until(
            lambda: self._is_ready(self._output.read_text()) or not is_running(process),
            timeout_seconds=LONG,
            every_seconds=0.1,
            what=f"{self.name} is ready",
        )
        assert is_running(process), f"{self.name} ended"

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        assert self._process is not None
        self._process.terminate()

    def wait_stopped(self) -> None:
        """Its end, which is in time and clean."""
        assert self._process is not None
        assert self._process.wait(MOST_SECONDS_TO_STOP) == 0, self._output.read_text()
        assert '"level": "ERROR"' not in self._output.read_text(), self._output.read_text()

    def end(self) -> None:
        """Leave nothing of it."""
        if self._process is not None and is_running(self._process):
            for one in (*self._process.children(recursive=True), self._process):
                if is_running(one):
                    one.kill()
        print(self.name, self._output.read_text()[-2000:])  # noqa: T201 - shown when the test fails


class Fleet:
    """Two hosts with an API, two workers and a consumer each, and Flower; servers beside them."""

    def __init__(
        self, folder: Path, settings: Settings, rabbitmq: RabbitMQServer, redis: RedisServer
    ) -> None:
        self.settings = settings
        self.rabbitmq = rabbitmq
        self.redis = redis
        self.ports = (free_port(), free_port())
        flower_port = free_port()
        environment = worker_environment(
            {
                "WAYBILL_DATABASE_URL": settings.database_url,
                "WAYBILL_BROKER_URL": rabbitmq.url,
                "WAYBILL_REDIS_URL": redis.url,
                "WAYBILL_DATA_DIR": str(settings.data_dir),
                "WAYBILL_FLOWER_PORT": str(flower_port),
                "WAYBILL_RATE_LIMITS": "off",
                "WAYBILL_TRUSTED_PROXIES": "127.0.0.1",
                "WAYBILL_CALLBACK_ALLOW_PRIVATE": "1",
                "WAYBILL_AMQP_PRINCIPALS": json.dumps({"waybill": ADMIN}),
            }
        )

        def member(*command: str, is_ready: Callable[[str], bool], **more: str) -> Member:
            return Member(command, {**environment, **more}, folder, is_ready)

        def host(number: int, port: int) -> list[Member]:
            def api_answers(_: str) -> bool:
                return ask_ready(f"http://127.0.0.1:{port}").is_ready

            worker = ("worker", "--concurrency", "1", "--name")
            threads = ("--queues", DELIVERIES_QUEUE, "--pool", "threads")
            return [
                member("api", is_ready=api_answers, WAYBILL_API_PORT=str(port)),
                member(*worker, f"jobs-{number}", "--queues", _JOBS, is_ready=_has("Connected to amqp")),
                member(*worker, f"deliveries-{number}", *threads, is_ready=_has("Connected to amqp")),
                member("consumer", is_ready=_has("consuming upstream messages")),
            ]

        self.hosts = [host(number, port) for number, port in enumerate(self.ports)]
        self.flower = [member("flower", is_ready=_has("flower is up"))]

    @property
    def members(self) -> list[Member]:
        """All of them."""
        return [*self.hosts[0], *self.hosts[1], *self.flower]

    def start(self) -> None:
        """Start everything and wait until it works."""
        for one in self.members:
            one.start()
        for one in self.members:
            one.wait_ready()

    def restart(self, members: Sequence[Member]) -> None:
        """SIGTERM to these, a new process for each that has ended, and wait until all work."""
        for one in members:
            one.ask_to_stop()
        for one in members:
            one.wait_stopped()
            one.start()
        for one in members:
            one.wait_ready()


def _has(words: str) -> Callable[[str], bool]:
    return lambda said: words in said


@contextmanager
def running_fleet(postgres: PostgresServer) -> Iterator[Fleet]:
    """A fleet for the length of a block; nothing is left of it."""
    with (
        temporary_data_directory() as directory,
        fresh_database(postgres) as database_url,
        running(RabbitMQServer(directory)) as rabbitmq,
        running(RedisServer(directory)) as redis,
    ):
        settings = Settings(
            _env_file=None,
            database_url=database_url,
            data_dir=directory.path,
            admin_email=ADMIN,
            admin_password=PASSWORD,
        )
        schema.prepare(settings)
        fleet = Fleet(directory.path, settings, rabbitmq, redis)
        try:
            fleet.start()
            yield fleet
        finally:
            for one in fleet.members:
                one.end()


class Load:
    """Clients that write, poll and wait all the time, and a publisher; they count what they meet.

    Args:
        url: The gateway's.
        token: An access token.
        broker_url: Where the publisher publishes.
        endpoint: Told of every outcome.
    """

    def __init__(self, url: str, token: str, broker_url: str, endpoint: str) -> None:
        self.met: Counter[str] = Counter()
        self.accepted: set[str] = set()
        self.unkeyed: set[str] = set()
        self.published: set[str] = set()
        self.waited_for = 0
        self._url = url
        self._token = token
        self._broker_url = broker_url
        self._endpoint = endpoint
        self._stopping = threading.Event()
        work = [*[self._write] * WRITERS, *[self._write_without_key] * WRITERS_WITHOUT_KEY, self._publish]
        self._threads = [threading.Thread(target=one, daemon=True) for one in work]

    def __enter__(self) -> "Load":
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for one in self._threads:
            one.join(60)

    def goes_on(self) -> bool:
        """Wait until some more was asked for and done; fails where nothing goes any more."""
        before, published = len(self.accepted), len(self.published)
        wait_until(
            lambda: len(self.accepted) > before + 5 and len(self.published) > published + 5,
            timeout_seconds=60,
            what="the load goes on",
        )
        return True

    def _ask(self, client: Client, method: str, path: str, body: Any = None, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            answer = client.call(method, path, body, named)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.met[f"{method}: {error!r}"] += 1
            return None
        self.met[str(answer.status) if answer.status < 500 else f"{answer.status} {answer.body!r}"] += 1
        return answer

    def _write(self) -> None:
        """A write, sometimes waited for by itself; then its job, polled and long-polled until it is done."""
        client = Client(self._url, self._token)
        while not self._stopping.wait(0.05):
            key = str(uuid.uuid4())
            headers = {"Idempotency_Key": key, "Waybill_Callback": self._endpoint}
            if key < "4":
                headers["Prefer"] = "wait=5"
            answer = self._ask(client, "POST", "entities", {"name": key}, **headers)
            if answer is None or answer.status not in (201, 202):
                continue
            self.accepted.add(key)
            if answer.status == 201:
                continue
            job = answer.json
            while not job["done"] and not self._stopping.is_set():
                seen = f'"{job["sequence"]}"'
                answer = self._ask(
                    client, "GET", f"jobs/{job['id']}", None, Prefer="wait=5", If_None_Match=seen
                )
                self.waited_for += 1
                if answer is not None and answer.status == 200:
                    job = answer.json
                elif answer is None or answer.status != 304:
                    break

    def _write_without_key(self) -> None:
        """Write after write: where a process breaks one off, the gateway may not ask another."""
        client = Client(self._url, self._token)
        while not self._stopping.is_set():
            answer = self._ask(client, "POST", "entities", {"name": "without a key"})
            if answer is not None and answer.status == 202:
                self.unkeyed.add(answer.json["id"])

    def _publish(self) -> None:
        """Messages with confirms; what was not confirmed is published again, under its own id."""
        waiting: list[str] = []
        while not self._stopping.is_set():
            try:
                with ExitStack() as stack:
                    connection = pika.BlockingConnection(pika.URLParameters(self._broker_url))
                    stack.callback(_close, connection)
                    channel = connection.channel()
                    channel.confirm_delivery()
                    while not self._stopping.wait(0.05):
                        waiting = waiting or [f"upstream-{uuid.uuid4()}"]
                        channel.basic_publish(
                            "waybill.intake",
                            "entities.create",
                            json.dumps({"name": waiting[0]}),
                            pika.BasicProperties(
                                message_id=waiting[0],
                                user_id="waybill",
                                content_type="application/json",
                                delivery_mode=2,
                            ),
                        )
                        self.published.add(waiting.pop())
            except (AMQPError, OSError):
                self._stopping.wait(0.5)


def _close(connection: pika.BlockingConnection) -> None:
    try:
        connection.close()
    except AMQPError:
        return


def test_gateways_configuration_is_one_that_nginx_takes(tmp_path: Path) -> None:
    require(find_nginx)
    configuration = rendered(tmp_path, free_port(), (8000, 8001))

    tried = subprocess.run(
        [find_nginx(), "-t", "-p", str(tmp_path), "-c", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert tried.returncode == 0, tried.stderr
    assert "[warn]" not in tried.stderr


@pytest.mark.timeout(1800)
def test_everything_is_restarted_under_load_and_nobody_notices(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    for find in (find_nginx, find_rabbitmq, find_redis):
        require(find)
    with (
        running_fleet(postgres) as fleet,
        gateway(tmp_path, fleet.ports) as url,
        WebhookReceiver() as receiver,
    ):
        client = Client(url)
        token = client.log_in(ADMIN, PASSWORD)
        hook = client.call("POST", "callback-endpoints", {"url": receiver.url()})
        _follow(url, client)
        with Load(url, token, fleet.rabbitmq.url, hook.json["id"]) as load:
            load.goes_on()
            for host in fleet.hosts:
                fleet.restart(host)
                time.sleep(PASSED_OVER_SECONDS)
                load.goes_on()
            fleet.restart(fleet.flower)
            load.goes_on()
            for server in (fleet.redis, fleet.rabbitmq):
                server.stop()
                server.start()
                load.goes_on()

        assert {what for what in load.met if what not in ("200", "201", "202", "304")} == set(), load.met
        assert load.waited_for > 0
        _all_ended_once(fleet.settings, load)
        wait_until(
            lambda: len({one.headers["webhook-id"] for one in receiver.requests}) == len(load.accepted),
            timeout_seconds=LONG,
            what="every outcome was told",
        )


def _follow(url: str, client: Client) -> None:
    """Streams pass the gateway: a job is followed to its end by events and over a WebSocket."""
    job = client.call("POST", "entities", {"name": "followed"}).json["id"]
    with connect(f"{url.replace('http', 'ws')}/api/v1/stream") as stream:
        stream.send(json.dumps({"token": client.token, "subscribe": [job], "after": 0}))
        while not json.loads(stream.recv(timeout=60))["job"]["done"]:
            pass
    events = client.call("GET", f"jobs/{job}/events").body.split(b"\n\n")
    assert json.loads(events[-2].partition(b"data: ")[2])["state"] == "succeeded"


def _all_ended_once(settings: Settings, load: Load) -> None:
    """What was accepted is one job each, which succeeded once; nothing else was made."""
    container = Container(settings, role="test", pool_size=2)

    def rows(query: str) -> list[Any]:
        with container.database.snapshot() as connection:
            return list(connection.execute(text(query)))

    try:
        wait_until(
            lambda: (
                rows("SELECT count(*) FROM jobs WHERE state <> 'succeeded'") == [(0,)]
                and rows("SELECT count(*) FROM jobs WHERE door = 'amqp'")[0][0] >= len(load.published)
            ),
            timeout_seconds=LONG,
            every_seconds=0.2,
            what="every job succeeded",
        )
        keys = {row[0] for row in rows("SELECT key FROM idempotency_keys")}
        assert load.accepted | load.published <= keys
        followed = 1  # it has no key either
        assert rows("SELECT count(*) FROM jobs") == [(len(keys) + len(load.unkeyed) + followed,)]
        twice = "SELECT 1 FROM job_events WHERE state = 'succeeded' GROUP BY job_id HAVING count(*) > 1"
        assert rows(twice) == []
        assert rows("SELECT count(*) FROM entities WHERE version <> 1") == [(0,)]
        assert rows("SELECT count(*) FROM entities") == rows("SELECT count(*) FROM jobs")
    finally:
        container.close()
