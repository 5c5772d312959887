"""Which values a queue's arguments can have on the wire (AMQP 0-9-1, 4.2.5.5, and RabbitMQ's errata for it)."""

import struct
from typing import Any

from pamqp.encode import field_table


def can_be_sent(value: Any) -> bool:
    """Whether an argument can have this value: an integer of 64 bits, a text, a boolean, a list or table of such."""
    try:
        field_table({"argument": value})
    except (TypeError, ValueError, ArithmeticError, struct.error):
        return False
    return True
