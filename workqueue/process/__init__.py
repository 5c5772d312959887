"""What a process has of its own, and a handler could do harm to: signals, descriptors, children."""
