"""Lengths of time, for people."""


def span(seconds: float) -> str:
    """A length of time, in the two largest units that say something."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, length, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            rest = int(seconds % length // part)
            return f"{int(seconds // length)} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{seconds:.0f} s"
