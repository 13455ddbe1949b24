"""The oracle of worlds: what it takes a control plane's restart to mean."""

from netsonde.clock import NS_PER_S
from netsonde.model import TaskKind
from support.lease_world.oracle import Oracle


def test_a_clock_that_was_set_back_makes_leases_longer_and_no_queued_task_a_lease() -> None:
    oracle = Oracle({TaskKind.TCP: 6}, attempts_max=5, grace_ns=0)
    oracle.started(3600 * NS_PER_S, 3600 * NS_PER_S)
    oracle.registered(1, "probe0")
    oracle.enqueued(1, "held.example")
    oracle.enqueued(2, "queued.example")
    oracle.granted(1, "held.example", 7, 1, attempt=1, until_ns=50 * NS_PER_S)

    oracle.started(10 * NS_PER_S, 0)

    assert oracle.tasks[1].until_ns == 3650 * NS_PER_S
    assert oracle.tasks[2].until_ns == 0, "nobody owes a lease that was never granted"
    assert oracle.wrong == []


def test_a_clock_goes_on_no_earlier_than_the_last_process_wrote() -> None:
    oracle = Oracle({TaskKind.TCP: 6}, attempts_max=5, grace_ns=0)
    oracle.started(100 * NS_PER_S, 0)
    oracle.wrote(107 * NS_PER_S)
    oracle.hear(lambda: oracle.started(107 * NS_PER_S, -NS_PER_S))
    assert oracle.wrong == []

    oracle.hear(lambda: oracle.started(106 * NS_PER_S, -2 * NS_PER_S))

    assert oracle.wrong == ["the server's clock is 1000.0 ms behind what it wrote"]
