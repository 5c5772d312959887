"""Message models for Work queue producer."""
