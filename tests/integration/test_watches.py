"""Following single jobs: what a follower is told does not depend on who else follows the same job."""

import asyncio

from api_shim.changes.watches import Watches
from models.job_history import JobHistory
from tests.kit.platform import Platform


def test_who_comes_between_a_reading_and_its_handing_out_misses_nothing(platform: Platform) -> None:
    (job,) = platform.accept(platform.create())
    queued = platform.job(job).sequence
    platform.applier().apply([job])
    watches = Watches(JobHistory())

    async def told() -> list[list[str]]:
        with platform.database.snapshot() as connection, watches.following(job, queued) as first:
            hand_out = watches.read(connection, everything=True)
            with watches.following(job, 0) as late:
                assert hand_out is not None
                hand_out()
                hand_out = watches.read(connection, everything=False)
                assert hand_out is not None
                hand_out()
                return [[str(step.state) for step in await one.next(0)] for one in (first, late)]

    assert asyncio.run(told()) == [["succeeded"], ["queued", "succeeded"]]
