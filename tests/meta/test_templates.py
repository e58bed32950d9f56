import ast
import importlib

import pytest
from jinja2 import Environment, meta

from quench.files import CHECKOUT, TEMPLATES

MODULES = sorted((CHECKOUT / "roles").glob("*/*.py"))
ON_DISK = {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*") if path.is_file()}


def named_in(module):
    """The templates that a module names, with the role that it names them for."""
    dotted = ".".join(module.relative_to(CHECKOUT).with_suffix("").parts)
    # Constants and names of the module: a template that is chosen at run time cannot be looked for here.
    yield from named_by(ast.parse(module.read_text()), dict(vars(importlib.import_module(dotted))))


def named_by(node, names):
    if isinstance(node, ast.GeneratorExp) and isinstance(node.generators[0].target, ast.Name) and calls_template(node):
        head, *rest = node.generators
        try:
            values = evaluated(head.iter, names)
        except NameError:  # of the run, such as the settings; the template's name does not hang on it
            values = [None]
        for value in values:
            inner = ast.GeneratorExp(node.elt, rest) if rest else node.elt
            yield from named_by(inner, {**names, head.target.id: value})
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "template":
        role, dest = (evaluated(argument, names) for argument in node.args[:2])
        yield role, f"{role}/{dest.lstrip('/')}.j2"
    for child in ast.iter_child_nodes(node):
        yield from named_by(child, names)


def calls_template(node):
    return any(isinstance(name, ast.Name) and name.id == "template" for name in ast.walk(node))


def evaluated(node, names):
    return eval(ast.unparse(node), dict(names))  # noqa: S307


def included_in(name):
    return set(meta.find_referenced_templates(Environment().parse((TEMPLATES / name).read_text())))  # noqa: S701


@pytest.mark.parametrize("module", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_template_that_a_role_names_is_there_and_its_own(module):
    for role, name in named_in(module):
        assert name in ON_DISK
        assert role == module.parent.name


def test_every_template_is_used():
    used = {name for module in MODULES for _, name in named_in(module)}
    assert used
    used |= {included for name in used for included in included_in(name)}
    assert ON_DISK - used == set()


@pytest.mark.parametrize("name", sorted(ON_DISK))
def test_a_template_is_named_after_the_file_on_the_host(name):
    assert name.endswith(".j2")
    assert name.split("/")[1] in {"etc", "home", "opt", "srv", "usr", "var"}


@pytest.mark.parametrize("name", sorted(ON_DISK))
def test_a_template_holds_no_header_of_its_own(name):
    # It would say the same twice, or something else.
    assert "managed by" not in (TEMPLATES / name).read_text().lower()
