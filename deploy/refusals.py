"""How a command tells a refusal or an outage: one line on standard error, exit status 1."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

from models.errors import Refusal, Transient

_P = ParamSpec("_P")
_R = TypeVar("_R")


def told_in_a_line(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wrap a command so that what it is refused, or finds away, is one line and exit status 1."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except (Refusal, Transient) as error:
            click.echo(f"waybill: {error}", err=True)
            sys.exit(1)

    return wrapped
