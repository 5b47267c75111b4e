"""How outcomes leave: the outbox, callback endpoints, the rules of sending. Sends nothing itself."""
