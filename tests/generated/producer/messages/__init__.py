"""Message models for The tests' producer."""
