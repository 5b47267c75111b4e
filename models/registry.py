"""The registry: every resource this process serves, found by name. No resource is named here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pkgutil import iter_modules

import models.resources
from models.effects import ThirdPartyEffect
from models.errors import ConfigurationError, NotFound
from models.repository import Repository, TableRepository
from models.resource_type import ResourceType
from models.service import ResourceService

ENTRY_POINTS = "waybill.resources"


@dataclass(frozen=True, slots=True)
class Resource:
    """A declared resource with its collaborators."""

    type: ResourceType
    service: ResourceService
    repository: Repository


class Registry:
    """Resources by their plural name, in the order of their names.

    Args:
        types: The declarations.
    """

    def __init__(self, types: Sequence[ResourceType]) -> None:
        self._resources: dict[str, Resource] = {}
        for declared in sorted(types, key=lambda item: item.name):
            if declared.name in self._resources:
                raise ConfigurationError(f"two resources are called {declared.name}")
            service = declared.service(declared)
            self._resources[declared.name] = Resource(declared, service, TableRepository(declared))

    def __getitem__(self, name: str) -> Resource:
        """The resource called ``name``.

        Raises:
            NotFound: There is none.
        """
        try:
            return self._resources[name]
        except KeyError:
            raise NotFound("There is no such resource") from None

    def effects(self) -> dict[tuple[str, str], ThirdPartyEffect]:
        """Every effect on a third party, fallbacks included, by resource and name."""
        return {(one.type.name, effect.name): effect for one in self for effect in one.type.all_effects()}

    def __contains__(self, name: str) -> bool:
        return name in self._resources

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._resources.values())


def discover(modules: Sequence[str] = ()) -> Registry:
    """Import every resource: the built-in folder, installed entry points, and the modules named.

    Args:
        modules: Importable module names, each with a ``RESOURCE``.

    Raises:
        ConfigurationError: A module cannot be imported or declares nothing.
    """
    built_in = [f"models.resources.{item.name}" for item in iter_modules(models.resources.__path__)]
    installed = [entry.module for entry in metadata.entry_points(group=ENTRY_POINTS)]
    types = []
    for name in dict.fromkeys([*built_in, *installed, *modules]):
        try:
            declared = getattr(import_module(name), "RESOURCE", None)
        except ImportError as error:
            raise ConfigurationError(
                f"WAYBILL_RESOURCES: cannot import {name} ({error}); is its folder on PYTHONPATH?"
            ) from error
        except ConfigurationError:
            raise
        except Exception as error:  # whatever a module does when it is run
            raise ConfigurationError(
                f"WAYBILL_RESOURCES: cannot import {name} ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(declared, ResourceType):
            raise ConfigurationError(f"WAYBILL_RESOURCES: {name} has no RESOURCE = ResourceType(...)")
        types.append(declared)
    return Registry(types)
