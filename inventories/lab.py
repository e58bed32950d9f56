"""The lab on this machine: `quench lab up` first. Its hosts are real systemd hosts; their GPUs are simulated."""

from quench import openpgp
from quench.lab.fleet import host_data
from quench.lab.state import load

# What the lab's GPU profiles are, by the names of roles/nvidia_driver/compatibility.yaml.
_GPUS = {
    "none": {},
    "2xl4": {"l4": 2},
    "8xh100": {"h100-sxm": 8},
    "8xb200": {"b200": 8},
    "v100+b200": {"v100-sxm2-32gb": 1, "b200": 1},
}


def _host(data):
    """What every host of a lab has. What a lab gives, a real inventory writes down: see example.py."""
    return {
        "ssh_hostname": data["ssh_hostname"],
        "ssh_user": data["ssh_user"],
        "ssh_key": data["ssh_key"],
        "ssh_known_hosts_file": data["ssh_known_hosts_file"],
        "platform": data["platform"],
        "base_admin_keys": [data["admin_key"]],
        "base_apt_mirror": f"{data['mirror']}/debian",
        "base_apt_security_mirror": f"{data['mirror']}/debian-security",
        # Nothing there tells the time; the distribution's pool would be the world.
        "base_ntp_servers": [data["controller"]],
        "firewall_zones": data["zones"],
        "firewall_zone": data["zone"],
        "firewall_relaxations": {},
    }


def _clients(data):
    """The keyring: one client, whose key the lab has made."""
    return {
        "demo": {
            "keys": [{"sha256": data["api_key_sha256"], "expires": "2099-01-01"}],
            "requests_per_minute": 600,
            "burst": 50,
        }
    }


def _balancer(host, lab):
    """Data of a balancer. The controller is the client as well."""
    data = host_data(lab, host)
    return host.name, {
        **_host(data),
        "haproxy_server_name": data["shared_name"],
        "haproxy_certificate": data["certificate"],
        "haproxy_private_key": data["private_key"],
        "haproxy_node_name": data["name"],
        "haproxy_node_certificate": data["client_certificate"],
        "haproxy_node_private_key": data["client_private_key"],
        "haproxy_node_ca": data["ca"],
        "haproxy_client_zones": ["management", "app"],
        "haproxy_metrics_zones": ["management", "monitoring"],
        # A lab host may have 20000 files open.
        "haproxy_connections": 8000,
        "haproxy_clients": _clients(data),
        # One alone has its own address.
        **(_shared_address(data, lab) if len(lab.balancers) > 1 else {"keepalived_addresses": []}),
    }


def _shared_address(data, lab):
    """One address over all balancers."""
    return {
        "keepalived_addresses": [f"{lab.shared_address}/24"],
        "keepalived_interface": "eth0",
        "keepalived_router_id": 51,
        "keepalived_balancers": [balancer.address for balancer in lab.balancers],
        "keepalived_address": data["address"],
        "keepalived_check_server_name": data["shared_name"],
    }


def _node(host, lab):
    """Data of an inference node: behind the lab's balancers, if it has any."""
    data = host_data(lab, host)
    behind = [host_data(lab, balancer)["name"] for balancer in lab.balancers]
    return host.name, {
        **_host(data),
        **(_gpus(data) if data["gpus"] != "none" else {}),
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
                # In bfloat16, vLLM 0.32.0 dies of its first request if that is short and the processor has AMX: its
                # attention uses tiles before anybody has asked the kernel for them.
                # Eager mode needs no compilation; the engine's own list of routes is what the tests try.
                "engine_args": {"dtype": "float32", "enforce-eager": True, "disable-fastapi-docs": False},
            }
        },
        # The controller is the client as well.
        "nginx_client_zones": ["management", "app", "dmz"],
        "nginx_server_name": data["address"],
        "nginx_certificate": data["certificate"],
        "nginx_private_key": data["private_key"],
        "nginx_clients": {} if behind else _clients(data),
        "nginx_balancers": behind,
        "nginx_balancer_ca": data["ca"] if behind else "",
    }


def _gpus(data):
    """The NVIDIA stack, from repositories that the lab has made and signed itself."""
    with open(data["nvidia"]["key"]) as file:
        fingerprint = openpgp.fingerprint(file.read())
    return {
        "nvidia_driver_gpus": _GPUS[data["gpus"]],
        "nvidia_driver_version": "580.95.05",
        "nvidia_driver_repository": data["nvidia"]["repository"],
        "nvidia_driver_repository_key": data["nvidia"]["key"],
        "nvidia_driver_repository_fingerprint": fingerprint,
        "nvidia_driver_reboot": "when-needed",
        "nvidia_driver_reboot_seconds": 120,
        "container_toolkit_repository": data["nvidia"]["container_repository"],
        "container_toolkit_repository_key": data["nvidia"]["key"],
        "container_toolkit_repository_fingerprint": fingerprint,
        "dcgm_exporter_address": data["address"],
        "dcgm_exporter_client_zones": ["management", "monitoring"],
        "dcgm_exporter_clients": [f"{data['address'].rpartition('.')[0]}.0/24"],
        "dcgm_exporter_certificate": data["certificate"],
        "dcgm_exporter_private_key": data["private_key"],
        "dcgm_exporter_client_ca": data["ca"],
    }


_lab = load()
inference = [_node(host, _lab) for host in _lab.hosts if not host.balancer]
balancers = [_balancer(host, _lab) for host in _lab.balancers]
