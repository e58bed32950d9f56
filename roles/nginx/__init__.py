"""nginx as the only way to the engines."""

from roles.nginx.deploy import nginx, nginx_keys
from roles.nginx.files import files, node
from roles.nginx.settings import NginxSettings

__all__ = ["NginxSettings", "files", "nginx", "nginx_keys", "node"]
