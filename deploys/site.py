"""A whole site: inference nodes, and the balancers in front of them.

pyinfra inventories/large.py deploys/site.py

Nodes are worked on at the same time, so this is for the first time, and for what restarts nothing. A change of nodes
that serve is for `quench rollout`.
"""

from pyinfra import host, local

from quench import preflight

preflight()
if "inference" in host.groups:
    local.include("deploys/inference.py")
if "balancers" in host.groups:
    local.include("deploys/balancer.py")
