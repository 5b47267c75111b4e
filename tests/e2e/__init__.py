"""The whole journey, few."""
