"""What makes a host hard to take, and easy to audit."""

from roles.hardening.deploy import hardening
from roles.hardening.files import files
from roles.hardening.settings import HardeningSettings

__all__ = ["HardeningSettings", "files", "hardening"]
