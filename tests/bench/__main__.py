"""``python -m tests.bench``: the same as ``waybill bench``."""

from tests.bench.command import bench

if __name__ == "__main__":
    bench()
