"""Crashes as rounds of faults: at each failpoint alone, and at seeded pairs. Crashes nobody itself."""

import random
from collections.abc import Sequence

from models.failpoints import Step, points
from tests.chaos.faults import CRASH, Fault

LONGEST_SECONDS = 90.0
"""A point to which nobody comes within that time is one that nobody comes to. Generous, for busy machines."""

WHO: tuple[tuple[Step, ...], ...] = (
    # the worker of deliveries; it takes longest to come back, so the others are set between
    (
        *(Step.CLAIM, Step.EXTEND, Step.SEND_CALLBACK, Step.SETTLE_SEND, Step.SEND_EFFECT),
        *(Step.PUBLISH_REPLY, Step.PUBLISH_EVENT, Step.SETTLE_PUBLISH, Step.GIVE_UP_REPLY, Step.PUT_OFF),
        *(Step.PUT_OFF_OURS, Step.GIVE_BACK, Step.PUT_OFF_PUBLISH, Step.GIVE_UP, Step.PUT_OFF_SURPLUS),
    ),
    # the API
    (
        *(Step.ACCEPT, Step.ANNOUNCE_JOBS, Step.CANCEL, Step.REDRIVE, Step.REFUSE),
        *(Step.LOG_IN, Step.COUNT_FAILED_LOG_IN, Step.REFRESH, Step.LOG_OUT),
        *(Step.ENROLL_MFA, Step.CONFIRM_MFA, Step.REGISTER_ENDPOINT, Step.ROTATE_ENDPOINT),
        *(Step.REMOVE_ENDPOINT, Step.RESEND, Step.RECOVER),
    ),
    # a pool process
    (
        *(Step.APPLY, Step.MARK_CACHE, Step.SETTLE_CACHE, Step.VERDICT, Step.ANNOUNCE_DELIVERIES),
        *(Step.CRASH_ATTEMPT, Step.APPLY_ALONE),
    ),
    # a worker's main process
    (
        *(Step.WAKE, Step.CLAIM_JOBS, Step.REANNOUNCE_JOBS, Step.CLAIM_DELIVERIES),
        *(Step.REANNOUNCE_DELIVERIES, Step.ACKNOWLEDGE_TASK, Step.WITNESS, Step.CLAIM_DIRECTLY),
    ),
    # the consumer
    (
        *(Step.TAKE_IN, Step.ACKNOWLEDGE_UPSTREAM, Step.ANSWER_UPSTREAM, Step.DEAD_LETTER),
        *(Step.KEEP_DEAD_MESSAGE, Step.ACKNOWLEDGE_DEAD_MESSAGES),
    ),
    # a command
    (Step.DISCARD, Step.PRUNE_JOBS, Step.PRUNE_REST, Step.RESEAL),
)
"""Every step, by who mostly takes it."""

_BESIDE = {
    Step.PUT_OFF: ("reset", "worker-receiver"),
    Step.PUT_OFF_SURPLUS: ("black-hole", "worker-receiver"),
    Step.PUT_OFF_PUBLISH: ("reset", "worker-rabbitmq"),
    Step.GIVE_BACK: ("black-hole", "worker-receiver"),
    Step.GIVE_UP: ("reset", "worker-receiver"),
    Step.CLAIM_DIRECTLY: ("reset", "worker-rabbitmq"),
}
"""What else must be broken, that anybody comes by."""


def singles(seed: int) -> list[list[Fault]]:
    """A round for every failpoint, so that successive ones mostly meet different processes."""
    placed = [
        ((place + share) / len(steps), who, f"{side}-{step}")
        for who, steps in enumerate(WHO)
        for place, step in enumerate(steps)
        for side, share in (("before", 0.25), ("after", 0.75))
    ]
    return [_round([point], seed) for _, _, point in sorted(placed)]


def pairs(seed: int, count: int) -> list[list[Fault]]:
    """Rounds of two failpoints at once; the same for the same seed.

    Those that need something else to be broken come alone: it may keep everybody from the other one.
    """
    chance = random.Random(f"pairs-{seed}")
    names = sorted(name for name in points() if not _beside([name]))
    return [_round(chance.sample(names, 2), seed + place) for place in range(count)]


def _beside(names: Sequence[str]) -> list[tuple[str, str]]:
    steps = [Step(name.partition("-")[2]) for name in names]
    return [_BESIDE[step] for step in steps if step in _BESIDE]


def _round(names: Sequence[str], draw: int) -> list[Fault]:
    wanted = [*((CRASH, name) for name in names), *_beside(names)]
    return [Fault(kind, target, LONGEST_SECONDS, draw) for kind, target in wanted]
