"""vLLM as sandboxed systemd units."""

from roles.vllm.deploy import vllm
from roles.vllm.files import files, served
from roles.vllm.settings import VllmSettings

__all__ = ["VllmSettings", "files", "served", "vllm"]
