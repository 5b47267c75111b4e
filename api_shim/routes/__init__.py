"""The routes: each file tells one subject of the contract. No SQL, no business rules."""
