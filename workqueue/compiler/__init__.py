"""From `spec/` to `generated/`: read and resolved, linted, compiled, and proved by a round trip of values."""
