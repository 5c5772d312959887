"""Listeners to what happens in a worker, and what they make of it."""
