"""A network simulator: one process on the far end of a veth pair that plays a whole topology.

    with simulated(load_scenario(SCENARIOS / "lossy_hostile.toml")) as network:
        ...  # probe from network.host
    truth = network.stop()  # also within the block

The program beside this file is C and knows the truth exactly: what arrived when, what was decided,
what was handed to the kernel when, what was injected.
"""

from pathlib import Path

from support.netsim.fates import GENUINE, End, Fate, Kind, Reply
from support.netsim.network import SimulatedNetwork, SimulatorError, simulated
from support.netsim.parts import ScenarioError
from support.netsim.records import Answer, Flow, LinkCounts, Probe, RouterCounts, Target, Totals
from support.netsim.scenario import (
    Scenario,
    load_scenario,
    make_scenario,
    parse_scenario,
)
from support.netsim.truth import Truth, TruthHoleError

SCENARIOS = Path(__file__).resolve().parent / "scenarios"

__all__ = [
    "GENUINE",
    "SCENARIOS",
    "Answer",
    "End",
    "Fate",
    "Flow",
    "Kind",
    "LinkCounts",
    "Probe",
    "Reply",
    "RouterCounts",
    "Scenario",
    "ScenarioError",
    "SimulatedNetwork",
    "SimulatorError",
    "Target",
    "Totals",
    "Truth",
    "TruthHoleError",
    "load_scenario",
    "make_scenario",
    "parse_scenario",
    "simulated",
]
