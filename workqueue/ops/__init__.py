"""What operators ask of a queue and do to it: each function returns records, and prints nothing."""
