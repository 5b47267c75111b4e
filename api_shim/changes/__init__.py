"""Who waits for changes in the ledger: long-polls and streams. One channel, one query for all."""
