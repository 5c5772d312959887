"""A delivery is settled once, whatever happens to its channel."""

from collections.abc import Callable

import pytest

from workqueue.delivery import ChannelLost, Delivery

Settling = Callable[[Delivery], bool]
WAYS: dict[str, Settling] = {"ack": Delivery.ack, "requeue": Delivery.requeue, "reject": Delivery.reject}


def arrived(settled: list[str], error: Exception | None = None) -> Delivery:
    def settle(way: str) -> None:
        settled.append(way)
        if error is not None:
            raise error

    return Delivery(b"", "queue", "id", None, {}, True, False, 0, settle)


@pytest.mark.parametrize("way", WAYS)
def test_settling_tells_the_broker_once(way: str) -> None:
    told: list[str] = []
    delivery = arrived(told)
    assert not delivery.settled
    assert WAYS[way](delivery)
    assert told == [way]
    assert delivery.settled


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_a_second_settlement_is_a_fault_of_the_program_and_tells_the_broker_nothing(first: str, second: str) -> None:
    told: list[str] = []
    delivery = arrived(told)
    WAYS[first](delivery)
    with pytest.raises(AssertionError, match="id settled twice"):
        WAYS[second](delivery)
    assert len(told) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_channel_is_no_error_and_the_delivery_is_settled_all_the_same(way: str) -> None:
    told: list[str] = []
    delivery = arrived(told, ChannelLost())
    assert not WAYS[way](delivery)
    assert delivery.settled
    with pytest.raises(AssertionError):
        delivery.ack()


@pytest.mark.parametrize("way", WAYS)
def test_any_other_error_of_settling_is_not_swallowed(way: str) -> None:
    with pytest.raises(OSError, match="disk"):
        WAYS[way](arrived([], OSError("disk")))


def test_what_settles_is_not_in_the_picture() -> None:
    assert "settle=" not in repr(arrived([])).replace("_settled=", "")
