"""``waybill bench``: the benchmark of ``tests/bench``, which needs the development dependencies."""

from tests.bench.command import bench

__all__ = ["bench"]
