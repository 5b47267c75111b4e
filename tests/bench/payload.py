"""The one body that everybody is given, so that all write the same bytes. No sending."""

from typing import Any


def entity(index: int) -> dict[str, Any]:
    """The data of the ``index``-th entity: about 190 bytes of JSON, unique by its name."""
    return {
        "name": f"bench entity {index:08d}",
        "description": "A waybill travels with its shipment and says where it stands.",
        "metadata": {"source": "bench", "index": index, "tags": ["alpha", "beta"]},
    }
