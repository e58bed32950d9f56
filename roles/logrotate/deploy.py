"""Bring log rotation into place."""

from __future__ import annotations

from quench import LogFiles, install, packages, role, service
from roles.logrotate.files import TIMER, files
from roles.logrotate.settings import LogrotateSettings


@role(LogrotateSettings)
def logrotate(settings: LogrotateSettings, *logs: LogFiles) -> None:
    """Rotate the logs of the services that say where theirs are."""
    packages(["logrotate"])
    managed = files(settings, logs)
    install("logrotate", managed)
    service(TIMER, managed)
