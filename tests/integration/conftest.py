"""Fixtures of the integration tests: a platform on a database of its own."""

from collections.abc import Iterator

import pytest

from tests.kit.platform import Platform, running_platform


@pytest.fixture(scope="module")
def module_platform(database_url: str) -> Iterator[Platform]:
    """A migrated platform, made once a module."""
    with running_platform(database_url) as platform:
        yield platform


@pytest.fixture
def platform(module_platform: Platform) -> Platform:
    """The module's platform, without open jobs or deliveries of earlier tests."""
    module_platform.end_everything()
    return module_platform
