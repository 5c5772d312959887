"""Message models for Work queue worker."""
