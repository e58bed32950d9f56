"""NVIDIA's data centre GPU manager."""

from roles.dcgm.deploy import dcgm
from roles.dcgm.files import files
from roles.dcgm.settings import DcgmSettings

__all__ = ["DcgmSettings", "dcgm", "files"]
