"""A request's JSON body as a model. What an instance's body must be is its resource's, not said here."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from api_shim.web.http import JSON, Request
from models import strict_json
from models.schema import refusal

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, model: type[Model], max_bytes: int) -> Model:
    """The body, strictly by ``model``: no coercion between JSON types, members only by their wire names.

    Raises:
        Invalid: It is malformed, or does not fit.
        UnsupportedMediaType: It is not JSON.
        PayloadTooLarge: It is over ``max_bytes``.
    """
    request.check_media_type(JSON)
    return parse_body(await request.body(max_bytes), model)


def parse_body(body: bytes, model: type[Model]) -> Model:
    """The same of a body that was read already.

    Raises:
        Invalid: It is malformed, or does not fit.
    """
    strict_json.parse(body)
    try:
        return model.model_validate_json(body, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise refusal(error) from None
