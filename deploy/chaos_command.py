"""``waybill chaos``: the fault runs of ``tests/chaos``, which need the development dependencies."""

from tests.chaos.command import chaos

__all__ = ["chaos"]
