"""The seams between the floors: what an optimizer, a policy, a method, a driver must offer.

Each is small enough to be said in one sentence, holds no hidden state, and is written down here, below everything that
uses it, so that two floors can share it without importing each other.
"""

from fedhybrid.protocols.choosing import CandidateView, Policy, PolicyState
from fedhybrid.protocols.driving import Driver
from fedhybrid.protocols.optimizing import Optimizer
from fedhybrid.protocols.submodels import Costs, Quote, Submodel
from fedhybrid.protocols.training import Attendant, ClientRuntime, Method, RoundPlan, ServerState, Transport

__all__ = [
    "Attendant",
    "CandidateView",
    "ClientRuntime",
    "Costs",
    "Driver",
    "Method",
    "Optimizer",
    "Policy",
    "PolicyState",
    "Quote",
    "RoundPlan",
    "ServerState",
    "Submodel",
    "Transport",
]
