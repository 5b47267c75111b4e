"""Who asks and what they may do: users, roles, passwords, keys, tokens. No HTTP."""
