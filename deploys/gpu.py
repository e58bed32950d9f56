"""The NVIDIA stack alone: for hosts whose services are not Quench's business.

pyinfra inventories/prod.py deploys/gpu.py
"""

from quench import preflight
from roles.container_toolkit import container_toolkit
from roles.dcgm import dcgm
from roles.dcgm_exporter import dcgm_exporter
from roles.mig import mig
from roles.nvidia_driver import nvidia_driver

preflight()
gpus = nvidia_driver()
mig(gpus)
container_toolkit(gpus)
engine = dcgm(gpus)
dcgm_exporter(engine)
