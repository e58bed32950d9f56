"""Hardening and firewall alone: for hosts whose services are not Quench's business. What passes for these is in
firewall_flows.

pyinfra inventories/prod.py deploys/hardening.py
"""

from quench import preflight
from roles.base import base
from roles.firewall import firewall, firewall_ahead
from roles.hardening import hardening
from roles.logrotate import logrotate

preflight()
firewall_ahead()
base()
sudo_logs = hardening()
logrotate(sudo_logs)
firewall()
