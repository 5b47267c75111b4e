"""Each process of the platform on a broker user of its own: it does its work, and may do nothing else."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pytest
import urllib3
from pika.exceptions import ChannelClosedByBroker
from sqlalchemy import text

from deploy.ports import free_port
from deploy.rabbitmq_server import RabbitMQServer
from models.container import Container
from models.identity.principals import Role
from models.identity.users import hash_password
from models.migrate import migrate
from models.settings import Settings
from tests.kit.roles import Roles
from tests.kit.upstream import Broker, Upstream
from tests.kit.waiting import wait_until

PASSWORD = "correct horse battery staple"


@dataclass
class Apart:
    """The running platform, and who looks at it.

    Attributes:
        admin: Administers the broker.
        upstream: An upstream system, on its own user.
    """

    roles: Roles
    container: Container
    api: str
    flower: str
    admin: Upstream
    upstream: Upstream
    logs: Path
    flower_api: str
    _stack: ExitStack
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def keep_running(self) -> None:
        """Start what does not run, as a process manager does."""
        for command in ("api", "worker", "consumer", "flower"):
            known = self._processes.get(command)
            if known is None or known.poll() is not None:
                seen = {"WAYBILL_BROKER_API_URL": self.flower_api} if command == "flower" else {}
                log = self.logs / f"{command}-{uuid.uuid4().hex[:6]}.log"
                started = self.roles.running(command, log, **seen)
                self._processes[command] = self._stack.enter_context(started)

    def said(self) -> str:
        """All that the processes logged."""
        return "".join(log.read_text() for log in self.logs.glob("*.log"))


@pytest.fixture(scope="module")
def platform(
    broker: Broker, rabbitmq: RabbitMQServer, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("apart")
    ports = {"API": free_port(), "FLOWER": free_port()}
    roles = Roles(
        broker,
        rabbitmq.api_url,
        folder,
        WAYBILL_DATABASE_URL=database_url,
        WAYBILL_DATA_DIR=str(folder),
        WAYBILL_API_PORT=str(ports["API"]),
        WAYBILL_FLOWER_PORT=str(ports["FLOWER"]),
        WAYBILL_RATE_LIMITS="off",
    )
    applied = roles.doctor("apply")
    assert applied.exit_code == 0, applied.output
    container = Container(Settings(_env_file=None, database_url=database_url, data_dir=folder), role="test")
    migrate(container.database.engine)
    with container.database.transaction() as connection:
        container.users.add(connection, "upstream@example.com", hash_password(PASSWORD), Role.ADMIN)
    container.tokens  # noqa: B018 - makes the keys, once for all processes
    flower_user = roles.user("flower")
    flower_api = f"http://{flower_user}:secret-{flower_user}@127.0.0.1:{rabbitmq.management_port}/api/"
    with ExitStack() as stack:
        admin, upstream = broker.connect(), _connect(roles, "upstream")
        api, flower = (f"http://127.0.0.1:{port}" for port in ports.values())
        apart = Apart(roles, container, api, flower, admin, upstream, folder, flower_api, stack)
        apart.keep_running()
        yield apart
        apart.upstream.close()
        apart.admin.close()
    container.close()
    roles.delete()


def _connect(roles: Roles, role: str) -> Upstream:
    return Upstream(pika.BlockingConnection(pika.URLParameters(roles.url(role))), roles.user(role))


def _is_ready(platform: Apart) -> bool:
    assert "Unrecoverable" not in platform.said(), platform.said()
    try:
        return urllib3.request("GET", platform.api + "/health/ready", retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def test_every_process_does_its_work_on_its_own_user(platform: Apart) -> None:
    wait_until(lambda: _is_ready(platform), timeout_seconds=60, what="ready")
    events = platform.admin.channel.queue_declare("", exclusive=True).method.queue
    platform.admin.channel.queue_bind(events, "waybill.events", "#")

    # over HTTP
    assert _submit(platform, "by http", "wait=20").status == 201
    event = platform.admin.take(events)
    assert event.routing_key == "entities.create.succeeded"

    # over AMQP, answered to a queue with a name and to one without
    named = f"reply.{platform.roles.upstream}.orders"
    platform.upstream.channel.queue_declare(named, exclusive=True)
    for queue in (platform.upstream.reply_queue, named):
        platform.upstream.publish("entities.create", {"name": "by amqp"}, reply_to=queue)
        kinds = [platform.upstream.take(queue).properties.type for _ in range(2)]
        assert kinds == ["job.accepted", "job.succeeded"]

    # what cannot be taken
    refused = platform.upstream.publish("entities.create", b"{")
    assert platform.upstream.reply(refused).properties.type == "job.rejected"
    assert platform.admin.dead_letter(refused).headers["x-waybill-reason"].startswith("400")

    # what Celery cannot read
    platform.admin.channel.basic_publish("", "waybill.jobs", b"junk", pika.BasicProperties())
    wait_until(lambda: _dead_messages(platform) == 1, what="the dead message kept")

    # Flower: events, remote control, queue lengths
    login = urllib3.make_headers(basic_auth=f"upstream@example.com:{PASSWORD}")

    def asked() -> Any:
        answer = urllib3.request("GET", platform.flower + "/api/workers?refresh=1", headers=login)
        workers = json.loads(answer.data) if answer.status == 200 else {}
        return workers if all(one.get("active_queues") for one in workers.values()) else None

    def broker_page() -> bytes:
        return urllib3.request("GET", platform.flower + "/broker", headers=login).data

    wait_until(asked, timeout_seconds=60, what="a worker in Flower, and its queues")
    wait_until(lambda: b"waybill.intake" in broker_page(), timeout_seconds=60, what="the intake in Flower")

    assert "ACCESS_REFUSED" not in platform.said()
    assert platform.roles.doctor("check").exit_code == 0


def _submit(platform: Apart, name: str, prefer: str) -> urllib3.BaseHTTPResponse:
    token = platform.container.tokens.issue(_upstream_principal(platform))
    headers = {"Authorization": f"Bearer {token}", "Prefer": prefer, "Content-Type": "application/json"}
    body = json.dumps({"name": name})
    return urllib3.request("POST", platform.api + "/api/v1/entities", body=body, headers=headers)


def _upstream_principal(platform: Apart) -> Any:
    with platform.container.database.snapshot() as connection:
        user = platform.container.users.by_email(connection, "upstream@example.com")
    assert user is not None
    return user.principal


def _dead_messages(platform: Apart) -> int:
    with platform.container.database.snapshot() as connection:
        return int(connection.execute(text("SELECT count(*) FROM dead_messages")).scalar_one())


def _bind_own(channel: Any, exchange: str) -> None:
    channel.queue_bind(channel.queue_declare("", exclusive=True).method.queue, exchange, "#")


PUBLISH, CONSUME, DECLARE, DELETE, BIND = "publish to", "consume", "declare", "delete", "bind to"
ACTS: dict[str, Callable[[Any, str], object]] = {
    PUBLISH: lambda channel, exchange: channel.basic_publish(exchange, "waybill.jobs", b"{}", mandatory=True),
    CONSUME: lambda channel, queue: channel.basic_get(queue),
    DECLARE: lambda channel, queue: channel.queue_declare(queue),
    DELETE: lambda channel, queue: channel.queue_delete(queue),
    BIND: _bind_own,
}
FORBIDDEN = [
    *[("upstream", PUBLISH, name) for name in ("", "waybill.events", "waybill.dead", "waybill.jobs.dead")],
    *[("upstream", PUBLISH, name) for name in ("celery.pidbox", "celeryev")],
    *[("upstream", CONSUME, name) for name in ("waybill.intake", "waybill.jobs", "waybill.dead")],
    *[("upstream", DECLARE, name) for name in ("mine", "waybill.more", "reply.somebody", "reply")],
    *[("upstream", DELETE, name) for name in ("waybill.intake", "waybill.jobs")],
    *[("upstream", BIND, name) for name in ("waybill.events", "waybill.intake", "celeryev")],
    *[("worker", CONSUME, name) for name in ("waybill.intake", "waybill.dead", "waybill.jobs.dead")],
    *[("worker", PUBLISH, name) for name in ("waybill.intake", "waybill.dead", "celery.pidbox")],
    *[("worker", DELETE, name) for name in ("waybill.intake", "waybill.dead", "waybill.jobs.dead")],
    *[("consumer", CONSUME, name) for name in ("waybill.jobs", "waybill.deliveries", "waybill.dead")],
    *[("consumer", PUBLISH, name) for name in ("waybill.intake", "waybill.events", "celery.pidbox")],
    *[("consumer", DELETE, name) for name in ("waybill.intake", "waybill.jobs")],
    *[("api", CONSUME, name) for name in ("waybill.jobs", "waybill.intake", "waybill.jobs.dead")],
    *[("api", PUBLISH, name) for name in ("waybill.intake", "waybill.events", "celery.pidbox")],
    *[("api", DELETE, name) for name in ("waybill.jobs",)],
    ("api", DECLARE, "mine"),
    *[("flower", CONSUME, name) for name in ("waybill.jobs", "waybill.intake", "waybill.dead")],
    *[("flower", PUBLISH, name) for name in ("", "waybill.intake", "waybill.events", "celeryev")],
    *[("flower", DELETE, name) for name in ("waybill.jobs", "waybill.intake")],
]


@pytest.mark.parametrize(("role", "act", "name"), FORBIDDEN)
def test_no_user_may_do_what_is_not_its_work(platform: Apart, role: str, act: str, name: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(platform.roles.url(role)))
    channel = connection.channel()
    channel.confirm_delivery()
    with pytest.raises(ChannelClosedByBroker) as refused:
        ACTS[act](channel, name)
    assert refused.value.reply_code == 403
    connection.close()


def test_nobody_speaks_under_the_name_of_another(platform: Apart) -> None:
    liar = _connect(platform.roles, "upstream")
    with pytest.raises(ChannelClosedByBroker, match="user_id"):
        liar.publish("entities.create", {"name": "forged"}, user_id=platform.roles.user("api"))


def test_upstream_systems_do_not_reach_the_answers_of_one_another(platform: Apart) -> None:
    answers = f"reply.{platform.roles.upstream}.{uuid.uuid4().hex}"
    platform.upstream.channel.queue_declare(answers, durable=True)
    other = f"{platform.roles.broker.vhost}-other"
    call = platform.roles.broker.call
    call("PUT", f"/users/{other}", {"password": other, "tags": ""})
    pattern = rf"^(reply\.{other}(\..+)?|amq\.gen-.+)$"
    rights = {"configure": pattern, "write": r"^waybill\.intake$", "read": pattern}
    call("PUT", f"/permissions/{platform.roles.broker.vhost}/{other}", rights)
    stranger = platform.roles.broker.connect(other)
    with pytest.raises(ChannelClosedByBroker) as refused:
        stranger.channel.basic_get(answers)
    assert refused.value.reply_code == 403
    call("DELETE", f"/users/{other}")


def test_topics_bound_what_an_upstream_system_may_ask_for(platform: Apart) -> None:
    platform.roles.write_policy(topics=r"^entities\.")
    assert "instead of" in "".join(platform.roles.deviations())
    assert platform.roles.doctor("apply").exit_code == 0
    limited = _connect(platform.roles, "upstream")
    with pytest.raises(ChannelClosedByBroker) as refused:
        limited.publish("users.create", {"email": "mallory@example.com"})
    assert refused.value.reply_code == 403
    _connect(platform.roles, "upstream").publish("entities.create", {"name": "within"})


def test_after_a_wipe_the_policy_is_applied_again_and_nothing_accepted_is_lost(platform: Apart) -> None:
    platform.roles.write_policy()
    platform.roles.delete()
    platform.roles.broker.wipe()
    answer = _submit(platform, "accepted meanwhile", "respond-async")
    assert answer.status == 202, answer.data
    job = json.loads(answer.data)["id"]

    assert platform.roles.doctor("apply").exit_code == 0

    platform.admin, platform.upstream = platform.roles.broker.connect(), _connect(platform.roles, "upstream")

    def is_applied() -> bool:
        platform.keep_running()
        with platform.container.database.snapshot() as connection:
            state = connection.execute(
                text("SELECT state FROM jobs WHERE id = :id"), {"id": job}
            ).scalar_one()
        return bool(state == "succeeded")

    wait_until(is_applied, timeout_seconds=60, every_seconds=0.2, what="the job applied")
    platform.upstream.publish("entities.create", {"name": "after the wipe"})
    kinds = [platform.upstream.take(platform.upstream.reply_queue).properties.type for _ in range(2)]
    assert kinds == ["job.accepted", "job.succeeded"]
