"""What holds for every host of every inventory in this folder."""

from quench import transport

# Host keys must be known: `ssh-keyscan` into a file, compared with what the console shows. "accept-new", which
# is pyinfra's default, would trust whoever answers first.
ssh_strict_host_key_checking = "yes"

# Small packets go out at once, which makes a run several times faster.
ssh_paramiko_connect_kwargs = transport.CONNECT_KWARGS
