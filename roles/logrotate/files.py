"""Files of the logrotate role."""

from __future__ import annotations

from collections.abc import Sequence

from quench import LogFiles, Managed, ManagedFile, template
from roles.logrotate.settings import LogrotateSettings

TIMER = "logrotate.timer"


def files(settings: LogrotateSettings, logs: Sequence[LogFiles]) -> list[Managed]:
    """A file for each service. It replaces the distribution's of the same name: two would collide."""
    timer = ManagedFile(
        "/etc/systemd/system/logrotate.timer.d/quench.conf",
        template("logrotate", "/etc/systemd/system/logrotate.timer.d/quench.conf", {}),
        restarts=TIMER,
    )
    return [
        timer,
        *(
            ManagedFile(
                f"/etc/logrotate.d/{log.service}",
                template("logrotate", "/etc/logrotate.d/service", {"settings": settings, "log": log}),
                check=f"logrotate --debug --state /dev/null /etc/logrotate.d/{log.service} 2>&1"
                " | { ! grep --ignore-case ^error; }",
            )
            for log in logs
        ),
    ]
