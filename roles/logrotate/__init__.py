"""Rotation and retention of log files."""

from roles.logrotate.deploy import logrotate
from roles.logrotate.files import files
from roles.logrotate.settings import LogrotateSettings

__all__ = ["LogrotateSettings", "files", "logrotate"]
