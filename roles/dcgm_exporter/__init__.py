"""GPU counters for Prometheus."""

from roles.dcgm_exporter.deploy import dcgm_exporter
from roles.dcgm_exporter.files import files
from roles.dcgm_exporter.settings import DcgmExporterSettings

__all__ = ["DcgmExporterSettings", "dcgm_exporter", "files"]
