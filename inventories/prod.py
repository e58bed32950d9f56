"""Your own servers. Fill in, then: quench check inventories/prod.py deploys/inference.py

A host is a name that SSH reaches, with the data that is its own. example.py shows a filled one, and
docs/guides/first-server.md goes through it step by step.
"""

inference: list[tuple[str, dict[str, object]]] = [
    # (
    #     "node1.example.org",
    #     {
    #         "ssh_user": "install",                 # may use sudo without a password
    #         "platform": "debian-12",
    #         "nginx_server_name": "llm.example.org",
    #         "nginx_certificate": "secrets/ca/llm.example.org.crt",
    #         "nginx_private_key": "file:secrets/ca/llm.example.org.key",
    #     },
    # ),
]
