"""Bring the base of a host into place."""

from __future__ import annotations

from quench import account, allow, install, packages, prove, role, service
from roles.base.files import CHRONY, files, flows, sources, sources_folder
from roles.base.settings import BaseSettings

PACKAGES = ["chrony", "sudo", "unattended-upgrades"]


@role(BaseSettings)
def base(settings: BaseSettings) -> str:
    """An administrator with sudo and key, package sources, time, locale, fenced updates.

    Returns the folder where apt reads its sources, for roles that add some.
    """
    allow(*flows(settings))
    install("base-sources", sources(settings))
    packages(PACKAGES)
    home = f"/home/{settings.admin_user}"
    account(settings.admin_user, home=home, shell="/bin/bash", groups=["sudo"], person=True)
    managed = files(settings)
    install("base", managed, guard=settings.rollback_seconds)
    prove("base", managed, guard=settings.rollback_seconds)
    service(CHRONY, managed)
    return sources_folder(settings)
