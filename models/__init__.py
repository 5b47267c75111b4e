"""What we keep and what we promise. Knows no HTTP and no broker."""
