"""``waybill attack``: the attack list of ``tests/attack``, which needs the development dependencies."""

from tests.attack.command import attack

__all__ = ["attack"]
