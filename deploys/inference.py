"""Inference nodes: engines in a sandbox, behind nginx.

pyinfra inventories/prod.py deploys/inference.py
"""

from quench import preflight
from roles.base import base
from roles.logrotate import logrotate
from roles.nginx import nginx
from roles.vllm import vllm

preflight()
base()
engines = vllm()
nginx_logs = nginx(engines)
logrotate(nginx_logs)
