"""Fakes, factories and the harness that starts real servers for tests."""
