"""The attack list, and random requests, against a platform that runs as users run it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.attack import fuzz
from tests.attack.arsenal import everything
from tests.attack.attack import http
from tests.attack.run import Result, aftermath, log_faults, look, run, strike
from tests.attack.target import Target, running_target

KINDS = sorted({attack.kind for attack in everything()})
SEED = 20261125


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """The platform."""
    with running_target() as running:
        yield running


@pytest.fixture(scope="module")
def results(target: Target) -> Mapping[str, Sequence[Result]]:
    """What came of every attack, by kind; "afterwards" holds what they left behind."""
    found: dict[str, list[Result]] = defaultdict(list)
    before = look(target)
    attacks = list(everything())
    for result in run(target, attacks):
        found[result.attack.kind].append(result)
    found["afterwards"] = [Result(attacks[0], list(aftermath(target, before, len(attacks))))]
    return found


@pytest.mark.parametrize("kind", [*KINDS, "afterwards"])
def test_every_attack_gets_its_correct_refusal(results: Mapping[str, Sequence[Result]], kind: str) -> None:
    assert results[kind]
    assert [(one.attack.name, one.faults) for one in results[kind] if one.faults] == []


def test_what_is_let_through_would_be_seen(target: Target) -> None:
    harmless = http("none", "a good request", "POST", "/api/v1/entities", 400, json_body={"name": "a"})

    assert "202 instead of 400" in strike(target, harmless).faults[0]


@pytest.mark.parametrize("sort", [0, 1, 2], ids=["grammar", "mutation", "schema"])
def test_random_requests_get_the_contracts_answers(target: Target, sort: int) -> None:
    before = look(target)
    one = fuzz.properties(target)[sort]

    count, fault = fuzz.falsify(one, SEED, examples=250)

    assert fault == ""
    assert count >= 100
    assert list(log_faults(target, before)) == []
