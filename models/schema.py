"""The base of every wire schema: camelCase outside, snake_case inside, unknown members refused."""

from collections.abc import Iterable, Mapping
from datetime import UTC
from functools import cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from models.errors import Detail, Invalid

UtcTime = Annotated[AwareDatetime, AfterValidator(lambda time: time.astimezone(UTC))]
"""An aware time, in UTC."""


class Schema(BaseModel):
    """A wire document. Field names are the table's column names; members are their camelCase."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        allow_inf_nan=False,
    )


def is_write_only(info: FieldInfo) -> bool:
    """Whether a member is declared with ``json_schema_extra={"writeOnly": True}``: it is never shown."""
    extra = info.json_schema_extra
    return isinstance(extra, dict) and extra.get("writeOnly") is True


def is_text(info: FieldInfo) -> bool:
    """Whether a member is a text, or null at most."""
    return info.annotation in (str, str | None)


@cache
def sealed_form(schema: type[BaseModel], names: frozenset[str]) -> type[BaseModel]:
    """``schema`` where the fields ``names`` are sealed: text or null, whatever their own rules say."""
    fields: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        if name in names:
            made = info.default_factory
            default: dict[str, Any] = {"default": info.default} if made is None else {"default_factory": made}
            fields[name] = (str | None, Field(**default, alias=info.alias))
    if not fields:
        return schema
    rules = schema.__pydantic_decorators__.field_validators.items()
    lifted: dict[str, Any] = {
        rule: field_validator(*one.info.fields)(_as_it_is)
        for rule, one in rules
        if names.issuperset(one.info.fields)
    }
    return create_model(schema.__name__, __base__=schema, __validators__=lifted, **fields)


def _as_it_is(value: str) -> str:
    return value


def takes_object(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    """Whether a JSON object may fit ``schema``: what a merge patch makes of a member that it sets one on."""
    if "$ref" in schema:
        return takes_object(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    choices = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if choices:
        return any(takes_object(one, definitions) for one in choices)
    if "type" in schema:
        return bool(schema["type"] == "object")
    return not {"const", "enum"} & schema.keys()


def refusal(error: ValidationError, *, prefix: str = "") -> Invalid:
    """The :class:`Invalid` that tells a caller what pydantic found, without echoing the values."""
    details = [
        Detail(
            ".".join(str(part) for part in (*filter(None, [prefix]), *_members(item["loc"]))),
            item["msg"].removeprefix("Value error, "),
        )
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:50]
    ]
    return Invalid("The document does not fit its schema", details=details)


def _members(location: Iterable[Any]) -> Iterable[Any]:
    marks = ("function-", "tagged-")
    return (part for part in location if not (isinstance(part, str) and part.startswith(marks)))
