"""Real processes under real faults: a control plane, agents, a proxy between them, a target.

Everything that is judged was seen from outside: by the proxy, by the target, by whoever set the
faults, and in the control plane's database at the end. The checker reads nothing else.
"""
