"""Inference nodes: GPUs and their driver, engines in a sandbox, nginx in front.

pyinfra inventories/prod.py deploys/inference.py
"""

from quench import preflight
from roles.acme import acme
from roles.base import base
from roles.container_toolkit import container_toolkit
from roles.dcgm import dcgm
from roles.dcgm_exporter import dcgm_exporter
from roles.firewall import firewall, firewall_ahead
from roles.hardening import hardening
from roles.logrotate import logrotate
from roles.mig import mig
from roles.nginx import nginx
from roles.nvidia_driver import nvidia_driver
from roles.vllm import vllm

preflight()
firewall_ahead()
apt_sources = base()
gpus = nvidia_driver(apt_sources)
slices = mig(gpus)
container_toolkit(gpus, apt_sources)
dcgm_exporter(dcgm(gpus))
engines = vllm(gpus, slices)
certificate = acme("nginx.service")
nginx_logs = nginx(engines, certificate)
sudo_logs = hardening(engines)
logrotate(nginx_logs, sudo_logs)
firewall()
