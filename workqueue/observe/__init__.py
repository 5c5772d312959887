"""Listeners to what happens in a worker."""
