"""GPUs for containers, by CDI."""

from roles.container_toolkit.deploy import container_toolkit
from roles.container_toolkit.files import files
from roles.container_toolkit.settings import ContainerToolkitSettings

__all__ = ["ContainerToolkitSettings", "container_toolkit", "files"]
