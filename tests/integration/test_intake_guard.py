"""What the AMQP intake does not let itself be used for: answers, size, encodings, names, rights, floods."""

import gzip
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pika.exceptions import ChannelClosedByBroker, NackError

from consumers.envelope import MAX_BODY_BYTES
from consumers.intake import PREFETCH
from deploy.broker.application import apply
from deploy.broker.management import Management
from deploy.broker.policy import BrokerPolicy, Limit
from deploy.rabbitmq_server import RabbitMQServer
from models import strict_json
from models.identity.principals import Role
from tasks.applier import Applier
from tests.kit.intake import IntakePlatform, intake_platform
from tests.kit.upstream import Broker, Upstream
from tests.kit.waiting import wait_until

ROOM = 100


@pytest.fixture(scope="module")
def platform(
    broker: Broker, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IntakePlatform]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    pattern = r"reply\.{user}(\..+)?|amq\.gen-.+"
    with intake_platform(broker, database_url, data_dir, {}, amqp_reply_queues=pattern) as made:
        yield made


@pytest.fixture
def upstream(platform: IntakePlatform) -> Upstream:
    return platform.upstream


# ---- answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"name": "taken"}', b"{"], ids=["good", "bad"])
def test_only_queues_that_fit_the_pattern_are_answered_to(
    platform: IntakePlatform, upstream: Upstream, body: bytes
) -> None:
    theirs = f"reply.payroll-{uuid.uuid4().hex}"
    upstream.channel.queue_declare(theirs)
    message_id = upstream.publish("entities.create", body, reply_to=theirs)
    after = upstream.publish("entities.create", {"name": "after"})

    reason = upstream.dead_letter(message_id).headers["x-waybill-reason"]
    assert reason.startswith("400 Validation: reply_to names a queue that is not answered to")
    assert upstream.reply(after).properties.type == "job.accepted"
    assert upstream.channel.basic_get(theirs)[0] is None


@pytest.mark.parametrize("rest", ["", ".orders"])
def test_queues_that_fit_the_pattern_are_answered_to(broker: Broker, upstream: Upstream, rest: str) -> None:
    queue = f"reply.{broker.user}{rest}"
    upstream.channel.queue_declare(queue, exclusive=True)
    upstream.publish("entities.create", {"name": "answered"}, reply_to=queue)

    assert upstream.take(queue).properties.type == "job.accepted"
    upstream.channel.queue_delete(queue)


def test_name_that_fits_the_pattern_only_in_part_is_refused(broker: Broker, upstream: Upstream) -> None:
    theirs = f"my.reply.{broker.user}"
    message_id = upstream.publish("entities.create", {"name": "partly"}, reply_to=theirs)

    assert upstream.dead_letter(message_id).headers["x-waybill-reason"].startswith("400")


# ---- decoding --------------------------------------------------------------------------

HUGE = b'{"name": "' + b"a" * 50_000_000 + b'"}'
UNDECODED: dict[str, tuple[int, bytes, dict[str, Any]]] = {
    "too large": (413, b'{"name": "' + b"x" * MAX_BODY_BYTES + b'"}', {}),
    "gzip": (415, gzip.compress(HUGE), {"content_encoding": "gzip"}),
    "deflate": (415, zlib.compress(HUGE), {"content_encoding": "deflate"}),
    "as kombu compresses": (415, zlib.compress(HUGE), {"headers": {"compression": "application/x-gzip"}}),
    "pickle": (415, b"\x80\x04.", {"content_type": "application/x-python-serialize"}),
    "yaml": (415, b"name: a", {"content_type": "application/x-yaml"}),
    "nested deep": (400, b'{"metadata": ' + b"[" * 120_000 + b"]" * 120_000 + b"}", {}),
    "nested deep in an event": (
        400,
        b'{"data": ' + b'{"a":' * 101 + b"1" + b"}" * 101 + b"}",
        {"content_type": "application/cloudevents+json"},
    ),
}


@pytest.mark.parametrize(("status", "body", "properties"), UNDECODED.values(), ids=UNDECODED.keys())
def test_what_is_too_large_compressed_or_deep_is_refused_before_any_decoding(
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
    properties: dict[str, Any],
) -> None:
    decoded: list[bytes] = []

    class Watched:
        JSONDecodeError = orjson.JSONDecodeError
        dumps = staticmethod(orjson.dumps)

        @staticmethod
        def loads(text: bytes) -> Any:
            decoded.append(bytes(text))
            return orjson.loads(text)

    monkeypatch.setattr(strict_json, "orjson", Watched)
    for name in ("decompress", "decompressobj"):
        monkeypatch.setattr(zlib, name, lambda *_, **__: pytest.fail("decompressed"))
    message_id = upstream.publish("entities.create", body, **properties)
    after = upstream.publish("entities.create", {"name": "watched"})

    assert upstream.dead_letter(message_id).headers["x-waybill-reason"].startswith(f"{status} ")
    upstream.reply(after)
    assert decoded == [b'{"name": "watched"}']


# ---- names and rights ------------------------------------------------------------------


def test_broker_itself_refuses_a_message_in_the_name_of_another_user(broker: Broker) -> None:
    broker.add_user("honest")
    liar = broker.connect("honest")
    with pytest.raises(ChannelClosedByBroker, match="user_id"):
        liar.publish("entities.create", {"name": "forged"}, user_id=broker.user)


def test_demotion_of_the_tokens_user_between_intake_and_apply_ends_the_job(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    container, email = platform.container, f"{uuid.uuid4().hex}@example.com"
    with container.database.transaction() as connection:
        somebody = container.users.add(connection, email, "-", Role.USER)
    token = container.tokens.issue(somebody)
    message_id = upstream.publish(
        "entities.create", {"name": "too late"}, headers={"authorization": f"Bearer {token}"}, user_id=None
    )
    job = platform.job_of(message_id)
    assert job.principal_id == somebody.id
    with container.database.transaction() as connection:
        container.users.set_role(connection, email, Role.GUEST)

    applier = Applier(
        container.database,
        container.ledger,
        container.registry,
        container.users,
        container.views,
        container.retry_policy,
    )
    applier.apply([job.id])

    done = platform.jobs("id = :id", id=job.id)[0]
    assert (done.state, done.error["status"]) == ("failed", 403)


def test_token_of_a_demoted_user_is_refused_at_the_intake(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    container, email = platform.container, f"{uuid.uuid4().hex}@example.com"
    with container.database.transaction() as connection:
        somebody = container.users.add(connection, email, "-", Role.USER)
        container.users.set_role(connection, email, Role.GUEST)
    headers = {"authorization": f"Bearer {container.tokens.issue(somebody)}"}
    message_id = upstream.publish("entities.create", {"name": "demoted"}, headers=headers, user_id=None)

    assert upstream.reply(message_id).document["status"] in (401, 403)


# ---- floods ----------------------------------------------------------------------------


@pytest.fixture
def bounded(broker: Broker, rabbitmq: RabbitMQServer, platform: IntakePlatform) -> Iterator[None]:
    """The intake with room for a hundred messages."""
    definition: dict[str, int | str] = {"max-length": ROOM, "overflow": "reject-publish"}
    limit = Limit("waybill-intake", r"^waybill\.intake$", definition, 10)
    list(apply(Management(rabbitmq.api_url), BrokerPolicy((), (limit,)), broker.vhost, {}))
    wait_until(lambda: _policy(broker) == "waybill-intake", what="the limit in force")
    yield
    broker.call("DELETE", f"/policies/{broker.vhost}/waybill-intake")


def _policy(broker: Broker) -> Any:
    return broker.call("GET", f"/queues/{broker.vhost}/waybill.intake").get("policy")


@pytest.mark.usefixtures("bounded")
def test_flood_is_refused_at_the_limit_and_nothing_confirmed_is_lost(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    mark = uuid.uuid4().hex
    platform.to_database.cut()
    confirmed: list[str] = []
    refused = 0
    for number in range(PREFETCH + 4 * ROOM):
        name = f"{mark} {number}"
        try:
            upstream.publish("entities.create", {"name": name}, reply_to=None)
        except NackError:
            refused += 1
        else:
            confirmed.append(name)
    assert refused > 0
    assert ROOM <= len(confirmed) <= PREFETCH + 2 * ROOM

    platform.to_database.restore()

    jobs = platform.named(mark, len(confirmed))
    taken = [one.payload["name"] for one in jobs]
    assert [name for name in taken if name in set(confirmed)] == confirmed
    after = upstream.publish("entities.create", {"name": "after the flood"})
    assert platform.job_of(after)


def test_no_more_is_in_hand_than_the_prefetch(platform: IntakePlatform, upstream: Upstream) -> None:
    mark = uuid.uuid4().hex
    platform.to_database.cut()
    for number in range(PREFETCH + 50):
        upstream.publish("entities.create", {"name": f"{mark} {number}"}, reply_to=None)

    def ready() -> int:
        found = upstream.channel.queue_declare("waybill.intake", passive=True)
        return int(found.method.message_count)

    wait_until(lambda: ready() == 50, what="the rest waits in the queue")
    platform.to_database.restore()
    assert len(platform.named(mark, PREFETCH + 50)) == PREFETCH + 50
