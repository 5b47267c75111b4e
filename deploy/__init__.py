"""How it all runs: the command line, the launcher, servers, locks. No domain rules."""
