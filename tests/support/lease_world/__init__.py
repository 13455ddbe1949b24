"""A control plane and agents in one simulated world: time, network, disks and crashes by a seed.

    summary = simulate(seed)  # WrongError names the seed and what did not hold

The code under test is the real one: `Agent` with its spool, `ControlPlane` behind its API, on
either store. What is simulated is what surrounds them. Nobody waits for real time, and the same
seed makes the same world.
"""

from support.lease_world.faults import Fault
from support.lease_world.oracle import WrongError
from support.lease_world.world import FAULTS_MIN, LEASES_MIN, Summary, simulate

__all__ = ["FAULTS_MIN", "LEASES_MIN", "Fault", "Summary", "WrongError", "simulate"]
