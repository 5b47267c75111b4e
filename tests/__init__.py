"""Proof, from unit to chaos."""
