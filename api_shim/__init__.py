"""The ASGI edge: what HTTP clients meet. No business rules, no tables."""
