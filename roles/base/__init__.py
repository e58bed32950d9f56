"""What every host has."""

from roles.base.deploy import base
from roles.base.files import files
from roles.base.settings import BaseSettings

__all__ = ["BaseSettings", "base", "files"]
