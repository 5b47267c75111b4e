"""Examining a running platform: what each part is, whether it is well, how to mend it. Prints nothing."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

import psutil
import psycopg
import redis
import urllib3
from amqp.exceptions import AMQPError
from kombu import Connection

from deploy.broker.inspection import APPLY, has_accounts, inspect, vhost_of
from deploy.broker.management import Management
from deploy.broker.membership import membership
from deploy.broker.policy import SHIPPED, load_policy
from deploy.data_directory import DataDirectory
from deploy.greeting import masked
from deploy.readiness import ask_ready, http_url
from deploy.supervisor import KINDS
from models.breaker import BreakerBoard, OpenBreaker, Phase
from models.container import Container
from models.database_hosts import has_several_hosts, server_of
from models.errors import BrokerUnavailable, ConfigurationError, Transient
from models.index_building import invalid_indexes
from models.schema_fitness import pending, why_unfit
from models.settings import Settings
from tasks.app import make_app
from tasks.presence import Presence

_LEAST_POSTGRES = 15
_LEAST_FREE_MIB = 256
_MOST_BREAKERS = 20
_START = "start the platform with deploy/up"
_REMAKE = (
    "start its nodes; where they run and its log tells of a corrupt one, have it made anew: "
    "rabbitmqctl -p {vhost} delete_queue {queue} (jobs and deliveries in it are announced again)"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One part's state.

    Attributes:
        part: What was examined.
        is_well: Whether it is as it should be.
        detail: Its URL, pid or log, or what is wrong.
        remedy: How to mend it; empty when it is well.
    """

    part: str
    is_well: bool
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Examine everything, the foundations first; never raises for a part that is ill."""
    directory = DataDirectory(settings.data_dir)
    yield from _data_directory(directory)
    yield from _processes(directory)
    yield _database(settings)
    yield from _schema(settings)
    yield from _broker(settings)
    yield _queues(settings)
    yield _broker_api(settings)
    yield from _members(settings)
    yield from broker_users(settings)
    yield _cache(settings)
    yield _api(settings)
    yield _flower(settings)


def _data_directory(directory: DataDirectory) -> Iterator[Finding]:
    if not directory.path.is_dir():
        yield Finding("data", False, f"{directory.path} is not there", f"{_START}, or set WAYBILL_DATA_DIR")
        return
    free = shutil.disk_usage(directory.path).free // (1024 * 1024)
    detail = f"{directory.path}, {free} MiB free"
    is_roomy = free >= _LEAST_FREE_MIB
    yield Finding("data", is_roomy, detail, "" if is_roomy else f"free {_LEAST_FREE_MIB} MiB on that disk")


def _processes(directory: DataDirectory) -> Iterator[Finding]:
    """Who runs, says ``processes.json``; and where the servers that we started write their logs."""
    file = directory.run / "processes.json"
    try:
        listed = json.loads(file.read_text())
    except FileNotFoundError:
        yield Finding("up", True, "no waybill up runs on this data directory")
        return
    except (OSError, ValueError) as error:
        yield Finding("up", False, f"cannot read {file}: {error}", "mend its owner and mode")
        return
    for kind in ("up", *KINDS):
        pids = listed.get(kind, [])
        pids = [pids] if isinstance(pids, int) else pids
        gone = [pid for pid in pids if not psutil.pid_exists(pid)]
        if gone:
            yield Finding(kind, False, f"pid {gone[0]} is gone", f"if it does not come back, {_START}")
        elif pids:
            yield Finding(kind, True, f"pid {', '.join(map(str, pids))}{_log_of(directory, kind)}")


def _log_of(directory: DataDirectory, kind: str) -> str:
    log: Path = directory.log_file(kind)
    return f", log {log}" if log.is_file() else ", log on the output of waybill up"


def _database(settings: Settings) -> Finding:
    if not settings.database_url:
        return Finding("database", False, "no URL", f"{_START}, or set WAYBILL_DATABASE_URL")
    url, shown = settings.database_url.replace("+psycopg", "", 1), masked(settings.database_url)
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            version = connection.info.server_version // 10_000
            at = f" at {server_of(connection)}" if has_several_hosts(url) else ""
    except psycopg.Error as error:
        return Finding(
            "database", False, f"{shown}: {_one_line(error)}", f"check WAYBILL_DATABASE_URL, or {_START}"
        )
    is_new_enough = version >= _LEAST_POSTGRES
    remedy = "" if is_new_enough else f"upgrade it to PostgreSQL {_LEAST_POSTGRES} or newer"
    return Finding("database", is_new_enough, f"{shown}, PostgreSQL {version}{at}", remedy)


def _schema(settings: Settings) -> Iterator[Finding]:
    """Whether it is one to work with; and what can be read in it: broken indexes, breakers."""
    container = Container(settings, role="doctor", pool_size=1)
    try:
        _ = container.registry
        with container.database.snapshot() as connection:
            reason = why_unfit(connection, container.revisions)
            waiting = pending(connection, container.revisions)
            broken = invalid_indexes(connection)
            standing = BreakerBoard(connection).not_closed(_MOST_BREAKERS) if reason is None else None
    except (ConfigurationError, Transient) as error:
        yield Finding("schema", False, _one_line(error), "mend what is said above first")
        return
    finally:
        container.close()
    if reason is not None:
        what, _, remedy = reason.rpartition(": ")
        yield Finding("schema", False, what, remedy)
    else:
        to_contract = f", {len(waiting)} to contract once no older version runs" if waiting else ""
        yield Finding("schema", True, f"current{to_contract}")
    for name in broken:
        yield Finding("index", False, f"{name} is INVALID: its building was cut short", "run waybill migrate")
    if standing is not None:
        yield from _breakers(*standing)


def _breakers(found: list[OpenBreaker], among: int) -> Iterator[Finding]:
    """Each that is not closed; wrong is an open one of a third party: a user's endpoint is the user's affair.

    Half-open is well: where something waited, it would be probed by now.
    """
    for one in found:
        probe = one.probe_at.astimezone(UTC).isoformat(timespec="seconds")
        if one.phase is not Phase.OPEN:
            detail = f"{one.dependency} is half-open: since {probe} whatever is to be sent there probes it"
            yield Finding("breakers", True, detail)
            continue
        detail = f"{one.dependency} is open after {one.failures} failures, next probe at {probe}"
        if one.is_third_party:
            name = one.dependency.partition(":")[2]
            yield Finding("breakers", False, detail, f"see that {name} answers where WAYBILL_SERVICES says")
        else:
            yield Finding("breakers", True, detail)
    if among > len(found):
        yield Finding("breakers", True, f"{among - len(found)} more are not closed (waybill_breakers_open)")
    if not among:
        yield Finding("breakers", True, "all closed")


def _queues(settings: Settings) -> Finding:
    """Whether every queue exists and has a worker; ``memory://`` queues are seen by their process only."""
    if not settings.has_broker:
        return Finding("queues", True, "in the memory of the one process")
    presence = Presence(make_app(settings))
    missing = presence.missing()
    presence.close()
    if missing is None:
        return Finding("queues", True, "all there, each with a worker")
    return Finding("queues", False, missing, f"{_START} --full, or start waybill worker")


def _broker(settings: Settings) -> Iterator[Finding]:
    """Each of its nodes: the platform goes on without some, the operator should not."""
    if not settings.has_broker:
        yield Finding("broker", True, "memory:// (embedded; deploy/up --full starts RabbitMQ)")
        return
    for url in settings.broker_urls:
        yield _broker_node(url)


def _broker_node(url: str) -> Finding:
    shown = masked(url)
    try:
        with Connection(url, connect_timeout=5) as connection:
            connection.connect()
            properties = getattr(connection.connection, "server_properties", {})
    except (OSError, AMQPError) as error:
        return Finding(
            "broker", False, f"{shown}: {_one_line(error)}", f"check WAYBILL_BROKER_URL, or {_START} --full"
        )
    return Finding(
        "broker", True, f"{shown}, {properties.get('product', '')} {properties.get('version', '')}"
    )


def _broker_api(settings: Settings) -> Finding:
    if not settings.broker_api_url:
        return Finding("broker-api", True, "not used (Flower shows no queue lengths without it)")
    return _http("broker-api", settings.broker_api_url, "overview", "check WAYBILL_BROKER_API_URL")


def _members(settings: Settings) -> Iterator[Finding]:
    """Whether every queue is led, and a cluster keeps it on as many nodes as it takes to outlive one."""
    if not (settings.has_broker and settings.broker_api_url):
        return
    try:
        found = membership(Management(settings.broker_api_url), vhost_of(settings.broker_url))
    except (BrokerUnavailable, ConfigurationError):
        return  # told of the management API itself
    for queue in found.lost:
        detail = f"{queue} has no leader: RabbitMQ could not restore it, or most of its nodes are down"
        yield Finding(
            "members", False, detail, _REMAKE.format(queue=queue, vhost=vhost_of(settings.broker_url))
        )
    for queue, members in found.thin.items():
        detail = f"{queue} has members on {members} of {found.nodes} nodes"
        yield Finding("members", False, detail, f"rabbitmq-queues grow NODE all --queue-pattern '^{queue}$'")
    if found.nodes > 1 and not (found.thin or found.lost):
        yield Finding("members", True, f"every queue survives any one of {found.nodes} nodes")


def broker_users(settings: Settings, policy_file: Path = SHIPPED, *, must: bool = False) -> Iterator[Finding]:
    """Whether each broker user may do what its role needs and no more; and how full queues may get.

    Args:
        settings: Name the management API; without it nothing can be said.
        policy_file: What should be.
        must: The users are to be apart: that they are not, or cannot be looked at, is wrong.
    """
    part = "broker-users"
    if not (settings.has_broker and settings.broker_api_url):
        if must:
            yield Finding(part, False, "not seen", "set WAYBILL_BROKER_URL and WAYBILL_BROKER_API_URL")
        return
    management = Management(settings.broker_api_url)
    try:
        policy = load_policy(policy_file, settings.amqp_principals)
        if not (must or has_accounts(management, policy)):
            yield Finding(part, True, f"one for everything (apart, in production: {APPLY})")
            return
        deviations = inspect(management, policy, vhost_of(settings.broker_url))
    except BrokerUnavailable as error:
        yield Finding(part, False, _one_line(error), "check WAYBILL_BROKER_API_URL")
        return
    except ConfigurationError as error:
        yield Finding(part, not must, f"not seen: {_one_line(error)}", "as it says")
        return
    for one in deviations:
        yield Finding(part, False, f"{one.subject}: {one.detail}", one.remedy)
    if not deviations:
        users = ", ".join(f"{one.user} ({one.role})" for one in policy.accounts)
        yield Finding(part, True, f"least permissions: {users}; limits: {len(policy.limits)}")


def _cache(settings: Settings) -> Finding:
    if not settings.redis_url:
        return Finding("redis", True, "not used (no cache, limits per process)")
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=5)
    try:
        client.ping()
    except redis.RedisError as error:
        shown = masked(settings.redis_url)
        return Finding(
            "redis", False, f"{shown}: {_one_line(error)}", f"check WAYBILL_REDIS_URL, or {_START} --full"
        )
    finally:
        client.close()
    return Finding("redis", True, masked(settings.redis_url))


def _api(settings: Settings) -> Finding:
    url = http_url(settings.api_host, settings.api_port)
    answer = ask_ready(url, timeout_seconds=5)
    if answer.is_ready:
        return Finding("api", True, f"{url} is ready")
    return Finding("api", False, f"{url}: {answer.reason}", f"{_START}, or check WAYBILL_API_HOST and _PORT")


def _flower(settings: Settings) -> Finding:
    url = http_url("127.0.0.1", settings.flower_port)
    return _http(
        "flower", url, "/", f"{_START}, or check WAYBILL_FLOWER_PORT", well=frozenset({200, 302, 401})
    )


def _http(part: str, url: str, path: str, remedy: str, *, well: frozenset[int] = frozenset({200})) -> Finding:
    parsed = urllib3.util.parse_url(url)
    headers = urllib3.make_headers(basic_auth=parsed.auth) if parsed.auth else {}
    target = parsed._replace(auth=None).url.rstrip("/") + "/" + path.lstrip("/")
    try:
        answer = urllib3.request("GET", target, headers=headers, timeout=5, retries=False, redirect=False)
    except urllib3.exceptions.HTTPError as error:
        return Finding(part, False, f"{masked(url)}: {_one_line(error)}", remedy)
    if answer.status not in well:
        return Finding(part, False, f"{masked(url)} answers {answer.status}", remedy)
    return Finding(part, True, masked(url))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
