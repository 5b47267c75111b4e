"""One suite per Protocol, run on each implementation."""
