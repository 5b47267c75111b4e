"""Ratios against named peers, from one run."""
