import ast
import inspect

import pytest

import quench
from quench.files import CHECKOUT
from quench.settings import known_roles

ROLES = sorted(path.parent.name for path in (CHECKOUT / "roles").glob("*/__init__.py"))
MODULES = sorted((CHECKOUT / "roles").rglob("*.py"))
DEPLOYS = sorted((CHECKOUT / "deploys").glob("*.py"))
# What a role may call to change a host. `require_path` only writes down what must be there.
OPERATIONS = {
    name
    for name in quench.__all__
    if inspect.isfunction(getattr(quench, name)) and getattr(quench, name).__module__.startswith("quench.operations.")
} - {"require_path"}


def name_of(path):
    return str(path.relative_to(CHECKOUT))


def test_there_are_roles_deploys_and_operations_to_look_at():
    assert {"base", "nginx", "vllm"} <= set(ROLES)
    assert {"install", "service", "packages"} <= OPERATIONS
    assert DEPLOYS


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_its_settings_its_files_and_its_deploy(role):
    folder = CHECKOUT / "roles" / role
    assert {"__init__.py", "settings.py", "files.py", "deploy.py"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_checks_that_look_at_a_real_host(role):
    assert (CHECKOUT / "tests" / "host" / f"test_{role}.py").exists()


@pytest.mark.parametrize("role", ROLES)
def test_the_prefix_of_a_role_is_its_name(role):
    assert role in known_roles()


def properties(schema):
    for name, model in {"": schema, **schema.get("$defs", {})}.items():
        for field, value in model.get("properties", {}).items():
            yield f"{name}.{field}".strip("."), value


@pytest.mark.parametrize("role", ROLES)
def test_every_field_of_a_roles_settings_is_described_also_in_nested_models(role):
    fields = dict(properties(known_roles()[role].model_json_schema()))
    assert fields
    assert [name for name, value in fields.items() if not value.get("description")] == []


def test_fields_of_nested_models_are_among_those_that_are_looked_at():
    assert "ServedModel.port" in dict(properties(known_roles()["vllm"].model_json_schema()))


def called(node):
    if isinstance(node, ast.Call):
        return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    return ""


def is_host_loop(node):
    return called(node) == "loop" and ast.unparse(node.func) == "host.loop"


def plain_loops(source):
    """Lines of loops that make operations and are not host.loop: pyinfra could not tell these operations apart."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.For):
            looped, iterators = node.body, [node.iter]
        elif isinstance(node, ast.While):
            looped, iterators = node.body, [node.test]
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            looped, iterators = [node.elt], [generator.iter for generator in node.generators]
        elif isinstance(node, ast.DictComp):
            looped, iterators = [node.key, node.value], [generator.iter for generator in node.generators]
        else:
            continue
        inside = {called(inner) for part in looped for inner in ast.walk(part)}
        if inside & OPERATIONS and not all(is_host_loop(iterator) for iterator in iterators):
            yield node.lineno


@pytest.mark.parametrize("module", [*MODULES, *DEPLOYS], ids=name_of)
def test_operations_are_looped_over_by_host_loop_alone(module):
    assert list(plain_loops(module.read_text())) == []


@pytest.mark.parametrize(
    ("source", "bad"),
    [
        ("for a in host.loop(names):\n    service(a, [])", False),
        ("for a in names:\n    print(a)", False),
        ("for a in names:\n    service(a, [])", True),
        ("for a in names:\n    if a:\n        quench.service(a, [])", True),
        ("[service(a, []) for a in names]", True),
        ("while names:\n    install('a', [])", True),
        ("for a in host.loop(names):\n    for b in a:\n        service(b, [])", True),
        ("for a in loop(names):\n    service(a, [])", True),
    ],
)
def test_the_rule_on_loops_finds_what_it_is_for(source, bad):
    assert bool(list(plain_loops(source))) is bad


@pytest.mark.parametrize("module", [*MODULES, *DEPLOYS], ids=name_of)
def test_no_role_asks_whether_an_operation_changed_something(module):
    # That is an event of one run: after a run that died half-way, the next would not know of it.
    events = {"changed", "did_change", "will_change", "did_not_change", "did_succeed", "did_error"}
    attributes = {node.attr for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Attribute)}
    assert not attributes & events


@pytest.mark.parametrize("deploy", DEPLOYS, ids=name_of)
def test_a_deploy_file_is_a_short_list_of_roles(deploy):
    assert len(deploy.read_text().splitlines()) < 35


@pytest.mark.parametrize("deploy", DEPLOYS, ids=name_of)
def test_a_deploy_file_asks_the_hosts_before_anything_else(deploy):
    body = [node for node in ast.parse(deploy.read_text()).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    calls = [called(getattr(node, "value", None)) for node in body]
    assert next(name for name in calls if name) == "preflight"


@pytest.mark.parametrize("deploy", DEPLOYS, ids=name_of)
def test_a_deploy_file_with_a_firewall_opens_before_the_work_and_closes_after_it(deploy):
    body = [node for node in ast.parse(deploy.read_text()).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    calls = [name for node in body if (name := called(getattr(node, "value", None)))]
    if "firewall" in calls:
        assert (calls[1], calls[-1]) == ("firewall_ahead", "firewall")
    else:
        assert "firewall_ahead" not in calls
