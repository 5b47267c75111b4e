"""JSON Merge Patch (RFC 7396), as its section 2 writes it. No validation."""

from typing import Any


def apply(target: Any, patch: Any) -> Any:
    """The document that ``patch`` makes of ``target``. Neither is changed.

    Args:
        target: Any JSON value.
        patch: Any JSON value; a member of ``None`` removes, an object merges, the rest replaces.
    """
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = apply(merged.get(name), value)
    return merged
