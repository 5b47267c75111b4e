"""Faults with a checker."""
