"""The broker's policy as its file says it: roles, users, limits. Asks no broker; see ``inspection`` for that.

``permissions.json`` beside this file is the one that ships. A right is RabbitMQ's own: three regular
expressions over the names of exchanges and queues. *Configure* makes and deletes, *write* publishes
to an exchange and binds a queue, *read* consumes from a queue and binds an exchange. ``{user}`` stands
for the user's own name. The rules behind it:

- Whoever only writes or reads may configure nothing. A worker may configure the queues that it
  consumes: what it can empty it may as well make anew.
- ``amq.default`` leads to every queue by its name, and RabbitMQ cannot restrict it further. Whoever
  announces or answers needs it: api, worker and consumer, no upstream system. So what an upstream
  names in ``reply_to`` is checked by the consumer (``WAYBILL_AMQP_REPLY_QUEUES``).
- Limits are policies and no queue arguments: those cannot be changed once the queue exists.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
)

from models.errors import ConfigurationError

SHIPPED = Path(__file__).with_name("permissions.json")
ANY_TOPIC = ".*"
"""What a user without topic permissions may publish."""
RIGHTS = ("configure", "write", "read")
_UPSTREAM = "upstream"
_NUMBERS = ("max-length", "max-length-bytes", "message-ttl", "expires", "delivery-limit")
_OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern.replace("{user}", "user"))
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error}") from error
    return pattern


_Pattern = Annotated[str, AfterValidator(_regular_expression)]


class _Role(_Strict):
    configure: _Pattern
    write: _Pattern
    read: _Pattern
    tags: tuple[str, ...] = ()


class _User(_Strict):
    role: str
    topics: _Pattern = ANY_TOPIC


class _Limit(_Strict):
    pattern: _Pattern
    definition: dict[str, StrictInt | StrictStr] = Field(min_length=1)
    priority: int = Field(10, ge=0)

    @field_validator("definition")
    @classmethod
    def _known_to_rabbitmq(cls, definition: dict[str, int | str]) -> dict[str, int | str]:
        for key, value in definition.items():
            if key in _NUMBERS:
                if isinstance(value, str) or value < 0:
                    raise ValueError(f"{key} must be a number from 0 on")
            elif key != "overflow":
                raise ValueError(f"may have {', '.join(_NUMBERS)} and overflow, not {key!r}")
            elif value not in _OVERFLOWS:
                raise ValueError(f"overflow must be one of {', '.join(_OVERFLOWS)}")
        return definition


class _File(_Strict):
    roles: dict[str, _Role]
    users: dict[str, _User]
    limits: dict[str, _Limit]


@dataclass(frozen=True, slots=True)
class Account:
    """What one broker user may do.

    Attributes:
        rights: Regular expressions by configure, write and read.
        tags: What it may do in the management API.
        topics: Routing keys that it may publish to ``waybill.intake``, as a regular expression.
    """

    user: str
    role: str
    rights: Mapping[str, str]
    tags: frozenset[str]
    topics: str


@dataclass(frozen=True, slots=True)
class Limit:
    """How full queues may get: one policy of RabbitMQ's."""

    name: str
    pattern: str
    definition: Mapping[str, int | str]
    priority: int

    def document(self) -> dict[str, Any]:
        """As the management API and a definitions file have it."""
        return {
            "pattern": self.pattern,
            "apply-to": "queues",
            "priority": self.priority,
            "definition": dict(self.definition),
        }


@dataclass(frozen=True, slots=True)
class BrokerPolicy:
    """Whom the broker knows and what it bounds.

    Attributes:
        accounts: Upstream systems included.
    """

    accounts: tuple[Account, ...]
    limits: tuple[Limit, ...]


def load_policy(path: Path = SHIPPED, upstreams: Iterable[str] = ()) -> BrokerPolicy:
    """Read the policy.

    Args:
        path: The file.
        upstreams: Broker users of upstream systems (``WAYBILL_AMQP_PRINCIPALS`` names them); those that
            the file does not name get the role ``upstream``.

    Raises:
        ConfigurationError: The file cannot be read, RabbitMQ would refuse what it says, or it names a role
            that it does not have.
    """
    try:
        said = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the broker policy {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"the broker policy {path} is wrong at {place}: {first['msg']}") from error
    users = {**{name: _User(role=_UPSTREAM) for name in upstreams}, **said.users}
    if _UPSTREAM in {user.role for name, user in users.items() if name == "celery"}:
        raise ConfigurationError("an upstream user cannot be called celery: reply.celery.pidbox is Celery's")
    unknown = sorted({user.role for user in users.values()} - set(said.roles))
    if unknown:
        raise ConfigurationError(f"the broker policy {path} has no role {unknown[0]}")
    return BrokerPolicy(
        accounts=tuple(_account(name, user, said.roles[user.role]) for name, user in users.items()),
        limits=tuple(
            Limit(name, one.pattern, one.definition, one.priority) for name, one in said.limits.items()
        ),
    )


def _account(name: str, user: _User, role: _Role) -> Account:
    rights = {right: getattr(role, right).replace("{user}", re.escape(name)) for right in RIGHTS}
    return Account(name, user.role, rights, frozenset(role.tags), user.topics)
