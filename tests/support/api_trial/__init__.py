"""Puts every call of docs/openapi.json to a real control plane, rightly and wrongly.

Schemathesis makes the requests and judges the answers; what is here runs the server, says who
asks, and names what may be answered otherwise than it expects.
"""
