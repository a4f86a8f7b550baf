"""What `streamkit` exports is chosen; a name that appears or goes is a decision, made here."""

import ast
import importlib

import streamkit
from tests.tidy.sources import PACKAGE


def test_every_public_name_exists_and_knows_its_home():
    for name in streamkit.__all__:
        assert getattr(streamkit, name) is not None

    assert set(dir(streamkit)) == set(streamkit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    try:
        streamkit.no_such_name  # noqa: B018
    except AttributeError as error:
        assert "no_such_name" in str(error)
    else:
        raise AssertionError("no_such_name exists")


def test_type_checkers_see_every_public_name():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    names = [alias for node in guarded for item in node.body for alias in getattr(item, "names", [])]
    seen = {alias.asname or alias.name for alias in names}

    assert set(streamkit.__all__) - {"__version__"} <= seen


def test_errors_export_one_tree_with_distinct_codes():
    errors = importlib.import_module("streamkit.errors")
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]

    assert all(issubclass(kind, errors.StreamkitError) for kind in kinds)
    own_codes = [vars(kind)["code"] for kind in kinds if "code" in vars(kind)]
    assert len(set(own_codes)) >= len(own_codes) - 1            # InternalError shares the base's code, on purpose
