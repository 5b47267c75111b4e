"""Who waits for what changes in the ledger: waits, long-polls, event streams. One channel, one query for all."""
