"""Settings of pyinfra itself, read whenever pyinfra runs in this folder, before it connects."""

import os
import sys

from pyinfra import config

# pyinfra's command leaves no bytecode beside deploy files, and the roles would be compiled anew for each run.
sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))

from quench.preflight import before_connecting  # noqa: E402

config.REQUIRE_PYINFRA_VERSION = "~=3.10"
config.SUDO = True
# Where pyinfra's own operations upload to. It would ask root for it, whom libpam-tmpdir gives a folder of his own, in
# which the login may not write.
config.TEMP_DIR = "/tmp"  # noqa: S108
# One host that fails stops the run for all, at that operation. One host after the other: --serial.
config.FAIL_PERCENT = 0

before_connecting()
