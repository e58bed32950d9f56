"""GPUs cut into slices."""

from roles.mig.deploy import mig
from roles.mig.files import files
from roles.mig.settings import MigSettings

__all__ = ["MigSettings", "files", "mig"]
