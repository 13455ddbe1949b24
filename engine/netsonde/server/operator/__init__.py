"""The operator API: what people and their programs ask of the control plane."""

from netsonde.server.operator.api import OperatorApi

__all__ = ["OperatorApi"]
