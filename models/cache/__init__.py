"""What is read often, kept in Redis: how it stays true, and what is kept. No queries of its own."""
