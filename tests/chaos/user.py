"""A user of the workload: who they are, and where they are called back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who works with the platform.

    Attributes:
        endpoint: Their callback endpoint.
        secret: What signs its callbacks.
        token: Of the first API, from the beginning.
    """

    name: str
    email: str
    password: str
    id: str = ""
    endpoint: str = ""
    secret: str = ""
    token: str = ""
