"""The lab on this machine: `quench lab up` first. Its hosts are real systemd hosts; their GPU is not there."""

from quench.lab.fleet import host_data
from quench.lab.state import load


def _node(host, lab):
    """Data of one host. What a lab gives, a real inventory writes down: see example.py."""
    data = host_data(lab, host)
    return host.name, {
        "ssh_hostname": data["ssh_hostname"],
        "ssh_user": data["ssh_user"],
        "ssh_key": data["ssh_key"],
        "ssh_known_hosts_file": data["ssh_known_hosts_file"],
        "platform": data["platform"],
        "base_admin_keys": [data["admin_key"]],
        "base_apt_mirror": f"{data['mirror']}/debian",
        "base_apt_security_mirror": f"{data['mirror']}/debian-security",
        "base_ntp_servers": [],
        "vllm_version": data["engine_version"],
        "vllm_requirements": data["engine_locks"],
        "vllm_index_url": f"{data['mirror']}/simple",
        "vllm_device": "cpu",
        "vllm_cpu_kv_cache_gib": 1,
        "vllm_drain_seconds": 30,
        "vllm_models": {
            data["model"]: {
                "port": 8000,
                "revision": data["model_revision"],
                "source": f"{data['mirror']}/models/{data['model']}/{data['model_revision']}",
                "sha256": data["model_sha256"],
                "max_model_len": 1024,
                # Eager mode needs no compilation; the engine's own list of routes is what the tests try.
                "engine_args": {"enforce-eager": True, "disable-fastapi-docs": False},
            }
        },
        "nginx_server_name": data["address"],
        "nginx_certificate": data["certificate"],
        "nginx_private_key": data["private_key"],
        "nginx_clients": {
            "demo": {
                "keys": [{"sha256": data["api_key_sha256"], "expires": "2099-01-01"}],
                "requests_per_minute": 600,
                "burst": 50,
            }
        },
    }


_lab = load()
inference = [_node(host, _lab) for host in _lab.hosts]
