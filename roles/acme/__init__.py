"""A certificate from an ACME CA, renewed by the host itself."""

from roles.acme.deploy import acme
from roles.acme.files import files
from roles.acme.settings import AcmeSettings

__all__ = ["AcmeSettings", "acme", "files"]
