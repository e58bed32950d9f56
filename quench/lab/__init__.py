"""The lab: real systemd hosts on this machine, in podman, on a network without a way out."""
