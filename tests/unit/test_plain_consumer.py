"""A worker's pauses before it connects again."""

from tasks.plain_consumer import LASTING_SECONDS, LONGEST_PAUSE_SECONDS, Patience


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_connections_that_do_not_last_are_made_ever_more_slowly() -> None:
    clock = Clock()
    patience = Patience(clock)
    pauses = []
    for _ in range(7):
        pauses.append(patience.pause())
        clock.time += pauses[-1] + 0.1
    assert pauses == [0, 0.25, 0.5, 1, 2, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]


def test_connection_that_lasted_is_made_again_at_once() -> None:
    clock = Clock()
    patience = Patience(clock)
    for _ in range(4):
        clock.time += patience.pause()
    clock.time += LASTING_SECONDS
    assert patience.pause() == 0
