"""Message models for The tests' worker."""
