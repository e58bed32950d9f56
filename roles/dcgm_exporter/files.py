"""Files of the dcgm_exporter role."""

from __future__ import annotations

from quench import HostEngine, Managed, ManagedDirectory, ManagedFile, certificates, template, to_yaml
from roles.dcgm_exporter.settings import DcgmExporterSettings

UNIT = "nvidia-dcgm-exporter.service"
USER = "dcgm-exporter"
_FOLDER = "/etc/dcgm-exporter/quench"

# Name, type and help of what is exported, as the exporter's own default-counters.csv has them. Those that alerts
# need are off there: XID errors by number, ECC, throttling, NVLink.
COUNTERS = (
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz)."),
    ("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Memory clock frequency (in MHz)."),
    ("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature (in C)."),
    ("DCGM_FI_DEV_MEMORY_TEMP", "gauge", "Memory temperature (in C)."),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw (in W)."),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "Total energy consumption since boot (in mJ)."),
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %)."),
    ("DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB)."),
    ("DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB)."),
    ("DCGM_FI_DEV_FB_RESERVED", "gauge", "Framebuffer memory reserved (in MiB)."),
    ("DCGM_FI_DEV_XID_ERRORS", "gauge", "Value of the last XID error encountered."),
    ("DCGM_EXP_XID_ERRORS_COUNT", "gauge", "XID errors by number within the window."),
    ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "counter", "Single-bit volatile ECC errors."),
    ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "counter", "Double-bit volatile ECC errors."),
    ("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "counter", "Single-bit persistent ECC errors."),
    ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "counter", "Double-bit persistent ECC errors."),
    ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "counter", "Rows remapped for uncorrectable errors."),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", "Rows remapped for correctable errors."),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", "Whether remapping of rows has failed."),
    ("DCGM_FI_DEV_POWER_VIOLATION", "counter", "Throttling due to power constraints (in ns)."),
    ("DCGM_FI_DEV_THERMAL_VIOLATION", "counter", "Throttling due to thermal constraints (in ns)."),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "PCIe retries."),
    ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "counter", "NVLink bandwidth counters of all lanes."),
    ("DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "counter", "NVLink flow-control CRC errors."),
    ("DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "counter", "NVLink data CRC errors."),
    ("DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", "counter", "NVLink retries."),
    ("DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "counter", "NVLink recovery errors."),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", "Ratio of time the graphics engine is active."),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gauge", "Ratio of cycles the tensor pipe is active."),
    ("DCGM_FI_PROF_DRAM_ACTIVE", "gauge", "Ratio of cycles the memory interface is active."),
    ("DCGM_FI_DRIVER_VERSION", "label", "Driver version."),
)


def files(settings: DcgmExporterSettings, engine: HostEngine) -> list[Managed]:
    """All files of the role."""
    assert settings.private_key is not None
    values = {"settings": settings, "engine": engine, "user": USER, "folder": _FOLDER, "counters": COUNTERS}
    return [
        ManagedDirectory(_FOLDER, group=USER, mode=0o750),
        ManagedFile(
            f"{_FOLDER}/counters.csv",
            template("dcgm_exporter", "/etc/dcgm-exporter/quench/counters.csv", values),
            restarts=UNIT,
        ),
        ManagedFile(f"{_FOLDER}/web.yml", to_yaml("dcgm_exporter", _web()), restarts=UNIT),
        ManagedFile(f"{_FOLDER}/tls.crt", certificates.text(settings.certificate), restarts=UNIT),
        ManagedFile(f"{_FOLDER}/client-ca.crt", certificates.text(settings.client_ca), restarts=UNIT),
        ManagedFile(
            f"{_FOLDER}/tls.key",
            f"{settings.private_key}\n",
            group=USER,
            mode=0o640,
            restarts=UNIT,
            secrets=(settings.private_key,),
        ),
        ManagedFile(
            f"/etc/systemd/system/{UNIT}",
            template("dcgm_exporter", f"/etc/systemd/system/{UNIT}", values),
            check=f"systemd-analyze verify --man=no {UNIT}",
            restarts=UNIT,
        ),
    ]


def _web() -> dict[str, object]:
    # github.com/prometheus/exporter-toolkit, docs/web-configuration.md
    return {
        "tls_server_config": {
            "cert_file": f"{_FOLDER}/tls.crt",
            "key_file": f"{_FOLDER}/tls.key",
            "client_ca_file": f"{_FOLDER}/client-ca.crt",
            "client_auth_type": "RequireAndVerifyClientCert",
            "min_version": "TLS13",
        }
    }
