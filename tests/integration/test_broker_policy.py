"""``waybill doctor --broker-permissions``: applies the policy, and names every difference from it."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from click.testing import CliRunner

from deploy.broker.policy import SHIPPED
from deploy.doctor import broker_users
from deploy.doctor_command import doctor
from deploy.rabbitmq_server import RabbitMQServer
from models.settings import Settings
from tests.kit.roles import Roles
from tests.kit.upstream import Broker


@pytest.fixture(scope="module")
def made(
    broker: Broker, rabbitmq: RabbitMQServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Roles]:
    made = Roles(broker, rabbitmq.api_url, tmp_path_factory.mktemp("policy"))
    yield made
    made.delete()


@pytest.fixture
def roles(made: Roles) -> Roles:
    """A virtual host where all is as it should be."""
    made.write_policy()
    applied = made.doctor("apply")
    assert applied.exit_code == 0, applied.output
    return made


def test_what_is_missing_is_named_and_made_and_no_password_is_shown(made: Roles) -> None:
    made.delete()
    found = made.doctor("check")
    assert found.exit_code == 1
    for name in ("api", "worker", "consumer", "flower", "upstream"):
        assert f"{made.user(name)}: missing (role {name})" in found.output
    assert "waybill.intake: queue missing" in found.output
    assert "waybill-intake: limit missing" in found.output
    assert "→ waybill doctor --broker-permissions apply" in found.output

    applied = made.doctor("apply")
    assert applied.exit_code == 0, applied.output
    checked = made.doctor("check")
    assert checked.exit_code == 0, checked.output
    assert f"{made.upstream} (upstream)" in checked.output
    assert "secret-" not in found.output + applied.output + checked.output


def test_user_without_a_password_is_not_made_and_nothing_is_changed(made: Roles) -> None:
    made.delete()
    applied = made.doctor("apply", with_passwords=False)
    assert applied.exit_code == 1
    assert f"the broker user {made.broker.vhost}-" in str(applied.exception)
    assert "WAYBILL_BROKER_PASSWORDS" in str(applied.exception)
    assert any("missing" in line for line in made.deviations())


def test_applied_again_users_keep_their_passwords(roles: Roles) -> None:
    assert roles.doctor("apply", with_passwords=False).exit_code == 0
    pika.BlockingConnection(pika.URLParameters(roles.url("worker"))).close()
    assert roles.deviations() == []


def _grant(role: str, **rights: str) -> Callable[[Roles], object]:
    def grant(roles: Roles) -> None:
        given = {"configure": "^$", "write": "^$", "read": "^$", **rights}
        roles.broker.call("PUT", f"/permissions/{roles.broker.vhost}/{roles.user(role)}", given)

    return grant


def _tag(role: str, tags: str) -> Callable[[Roles], object]:
    def tag(roles: Roles) -> None:
        user = roles.user(role)
        roles.broker.call("PUT", f"/users/{user}", {"password": f"secret-{user}", "tags": tags})

    return tag


def _limit(definition: dict[str, int]) -> Callable[[Roles], object]:
    document = {"pattern": r"^waybill\.intake$", "priority": 10, "apply-to": "queues"}
    return lambda roles: roles.broker.call(
        "PUT", f"/policies/{roles.broker.vhost}/waybill-intake", {**document, "definition": definition}
    )


def _delete(path: str) -> Callable[[Roles], object]:
    return lambda roles: roles.broker.call("DELETE", path.format(vhost=roles.broker.vhost))


def _topics(roles: Roles) -> None:
    topics = {"exchange": "waybill.intake", "write": "^users", "read": ".*"}
    roles.broker.call("PUT", f"/topic-permissions/{roles.broker.vhost}/{roles.upstream}", topics)


DEVIATIONS = {
    "everything": (_grant("worker", read=".*"), "worker: too much: may read .*waybill.intake"),
    "the default exchange": (
        _grant("upstream", write=r"^(waybill\.intake|amq\.default)$"),
        "upstream: too much: may write amq.default",
    ),
    "the others' answers": (
        _grant("upstream", read=r"^(reply\..*|amq\.gen-.*)$"),
        "upstream: too much: may read reply.celery.pidbox, reply.somebody",
    ),
    "nothing": (_grant("consumer"), "consumer: too little: may not read waybill.jobs.dead, waybill.intake"),
    "an expression of another kind": (
        _grant("api", write=r"^(amq\.default)$"),
        "api: may write .* instead of",
    ),
    "other topics": (_topics, r"upstream: publishes topics \^users instead of \.\*"),
    "speaking for others": (_tag("upstream", "impersonator"), "upstream: too much: has the tag impersonator"),
    "administering": (_tag("worker", "administrator"), "worker: too much: has the tag administrator"),
    "no monitoring": (_tag("flower", ""), "flower: too little: lacks the tag monitoring"),
    "another limit": (_limit({"max-length": 7}), "waybill-intake: limit is max-length 7 instead of max-l"),
    "no limit": (_delete("/policies/{vhost}/waybill-dead"), "waybill-dead: limit missing"),
    "no queue": (_delete("/queues/{vhost}/waybill.intake"), "waybill.intake: queue missing"),
    "no binding": (
        _delete("/bindings/{vhost}/e/waybill.intake/q/waybill.intake/%23"),
        "waybill.intake: queue not bound",
    ),
}


@pytest.mark.parametrize(("deviate", "told"), DEVIATIONS.values(), ids=DEVIATIONS.keys())
def test_difference_is_told_and_mended(roles: Roles, deviate: Callable[[Roles], object], told: str) -> None:
    deviate(roles)
    found = roles.deviations()
    assert any(re.search(told, line) for line in found), found
    assert roles.doctor("apply").exit_code == 0
    assert roles.deviations() == []


def test_user_of_no_role_is_told_where_it_reaches_what_is_ours(roles: Roles) -> None:
    call, vhost = roles.broker.call, roles.broker.vhost
    other = f"{vhost}-listener"
    call("PUT", f"/users/{other}", {"password": other, "tags": ""})
    own = rf"^{other}\..+$"
    call(
        "PUT",
        f"/permissions/{vhost}/{other}",
        {"configure": own, "write": own, "read": rf"{own}|^waybill\.events$"},
    )
    assert roles.deviations() == []

    call("PUT", f"/permissions/{vhost}/{other}", {"configure": "^$", "write": "^$", "read": "waybill"})
    found = roles.doctor("check")
    assert f"{other}: too much: has no role and may read waybill.jobs" in found.output
    assert "waybill.events" not in found.output
    assert f"rabbitmqctl clear_permissions -p {vhost} {other}" in found.output
    call("DELETE", f"/users/{other}")


def test_rights_in_another_virtual_host_are_told(roles: Roles, rabbitmq: RabbitMQServer) -> None:
    elsewhere = Broker(rabbitmq.api_url, rabbitmq.url)
    rights = {"configure": "", "write": ".*", "read": ""}
    roles.broker.call("PUT", f"/permissions/{elsewhere.vhost}/{roles.user('api')}", rights)
    assert any(
        f"api: too much: has rights in the virtual host {elsewhere.vhost}" in one
        for one in roles.deviations()
    )
    elsewhere.delete()
    assert roles.deviations() == []


def test_policy_that_stands_in_the_way_of_a_limit_is_told(roles: Roles) -> None:
    path = f"/policies/{roles.broker.vhost}/everywhere"
    document = {
        "pattern": ".*",
        "priority": 99,
        "apply-to": "queues",
        "definition": {"max-length": 10_000_000},
    }
    roles.broker.call("PUT", path, document)
    assert any("waybill-intake: the policy everywhere stands in its way" in one for one in roles.deviations())
    roles.broker.call("DELETE", path)
    assert roles.deviations() == []


def test_who_may_not_look_says_so(roles: Roles, rabbitmq: RabbitMQServer) -> None:
    flower = roles.user("flower")
    url = f"http://{flower}:secret-{flower}@127.0.0.1:{rabbitmq.management_port}/api/"
    found = roles.doctor("check", WAYBILL_BROKER_API_URL=url)
    assert found.exit_code == 1
    assert "administrator" in found.output
    assert "secret-" not in found.output


def test_doctor_says_nothing_of_users_where_there_is_no_management_api(rabbitmq: RabbitMQServer) -> None:
    assert list(broker_users(Settings(broker_url=rabbitmq.url))) == []


def test_doctor_is_content_where_one_user_does_everything(rabbitmq: RabbitMQServer) -> None:
    settings = Settings(broker_url=rabbitmq.url, broker_api_url=rabbitmq.api_url)
    (finding,) = broker_users(settings)
    assert finding.is_well
    assert "waybill doctor --broker-permissions apply" in finding.detail


def test_launchers_own_broker_has_the_limits_from_its_first_start(broker: Broker) -> None:
    limits = {one["name"]: one["definition"] for one in broker.call("GET", "/policies/waybill")}
    said = json.loads(SHIPPED.read_text())["limits"]
    assert limits == {name: one["definition"] for name, one in said.items()}


def test_policy_file_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    said = json.loads(SHIPPED.read_text())
    said["users"]["crm"] = {"role": "upsteam"}
    environment = {
        "WAYBILL_BROKER_URL": "amqp://127.0.0.1:9/x",
        "WAYBILL_BROKER_API_URL": "http://127.0.0.1:9",
    }
    for text, told in (
        (json.dumps(said), "has no role upsteam"),
        ("{", "is wrong at"),
        (json.dumps({**said, "role": {}}), "is wrong at role"),
        (_with("users", topics="("), "is wrong at users.one.topics"),
        (_with("limits", pattern="("), "is wrong at limits.one.pattern"),
        (_with("limits", definition={}), "is wrong at limits.one.definition"),
        (_with("limits", definition={"max-lenght": 5}), "not 'max-lenght'"),
        (_with("limits", definition={"max-length": -1}), "max-length must be a number"),
        (_with("limits", definition={"max-length-bytes": "5"}), "max-length-bytes must be a number"),
        (_with("limits", definition={"overflow": "reject"}), "overflow must be one of"),
    ):
        file.write_text(text)
        options = ["--broker-permissions", "apply", "--broker-policy", str(file)]
        result = CliRunner(env=environment).invoke(doctor, options)
        assert told in str(result.exception)
        assert "\n" not in str(result.exception)


def _with(part: str, **members: Any) -> str:
    """The policy with one user, or limit, more."""
    said = json.loads(SHIPPED.read_text())
    whole: dict[str, dict[str, Any]] = {
        "users": {"role": "upstream"},
        "limits": {"pattern": "^x$", "definition": {"max-length": 5}},
    }
    return json.dumps({**said, part: {**said[part], "one": {**whole[part], **members}}})
