"""The NVIDIA driver and what has to move with it."""

from roles.nvidia_driver.deploy import nvidia_driver
from roles.nvidia_driver.files import files
from roles.nvidia_driver.settings import NvidiaDriverSettings

__all__ = ["NvidiaDriverSettings", "files", "nvidia_driver"]
