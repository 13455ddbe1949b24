"""What exists is never looked at again; the rest when somebody says, or seldom."""

import gc

from netsonde.collector import YOUNG_MAX, patient_collector, quiet_collector


def test_the_collector_is_quiet_for_the_block_and_as_it_was_after() -> None:
    assert gc.isenabled()
    with quiet_collector():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.disable()
    try:
        with quiet_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_patient_collector_looks_at_many_objects_at_once() -> None:
    before = gc.get_threshold()
    with patient_collector():
        assert gc.isenabled()
        assert gc.get_threshold() == (YOUNG_MAX, *before[1:])
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
