"""The registry: every resource this process serves, found by name. No resource is named here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pkgutil import iter_modules

import models.resources
from models.effects import ThirdPartyEffect
from models.errors import ConfigurationError, NotFound
from models.identity.sealing import Sealer
from models.repository import Repository, TableRepository
from models.resource_type import ResourceType
from models.service import ResourceService

ENTRY_POINTS = "waybill.resources"


@dataclass(frozen=True, slots=True)
class Resource:
    """A declared resource with its collaborators.

    Attributes:
        parent: Whose parts its instances are; None where they stand alone.
    """

    type: ResourceType
    service: ResourceService
    repository: Repository
    parent: "Resource | None" = None

    @property
    def path(self) -> str:
        """Where its instances are found, below the base: the parent's id is ``{id}``."""
        return self.type.name if self.parent is None else f"{self.parent.type.name}/{{id}}/{self.type.name}"

    @property
    def instance_path(self) -> str:
        """Where one of them is found: its id is ``{id}``, or ``{partId}`` below a parent's."""
        return f"{self.path}/{{id}}" if self.parent is None else f"{self.path}/{{partId}}"


class Registry:
    """Resources by their plural name, in the order of their names.

    Args:
        types: The declarations.
        sealer: Gives what seals write-only members, once it is needed.
    """

    def __init__(self, types: Sequence[ResourceType], sealer: Callable[[], Sealer] | None = None) -> None:
        made: dict[str, Resource] = {}
        for declared in sorted(types, key=lambda item: (item.parent is not None, item.name)):
            if declared.name in made:
                raise ConfigurationError(f"two resources are called {declared.name}")
            parent = _parent_of(declared, made)
            service = declared.service(declared, sealer)
            made[declared.name] = Resource(declared, service, TableRepository(declared), parent)
        self._resources = dict(sorted(made.items()))
        self._children = {
            name: tuple(one for one in self._resources.values() if one.parent is resource)
            for name, resource in made.items()
        }

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

    def children(self, name: str) -> tuple[Resource, ...]:
        """The resources whose instances are parts of those of ``name``."""
        return self._children[name]

    def __contains__(self, name: str) -> bool:
        return name in self._resources

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._resources.values())


def _parent_of(declared: ResourceType, known: Mapping[str, Resource]) -> Resource | None:
    if declared.parent is None:
        return None
    found = known.get(declared.parent.resource)
    if found is None or found.parent is not None:
        raise ConfigurationError(
            f"resource {declared.name}: its parent {declared.parent.resource} is not registered, "
            "or has a parent itself"
        )
    return found


def discover(modules: Sequence[str] = (), sealer: Callable[[], Sealer] | None = None) -> Registry:
    """Import every resource: the built-in folder, installed entry points, and the modules named.

    Args:
        modules: Importable module names, each with a ``RESOURCE``.
        sealer: Gives what seals write-only members, once it is needed.

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
    return Registry(types, sealer)
