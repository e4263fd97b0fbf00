"""The folder is the registry: every method there is readable, sourced, and has the code it promises."""

import inspect
import subprocess
import sys

import pytest

from bench import methods
from bench.config.overrides import parse_address
from bench.config.schema import TRAINED
from bench.errors import BenchError


@pytest.mark.parametrize("name", methods.names())
def test_every_number_of_a_method_has_a_source(name):
    method = methods.read(name)
    for stage, recipe in method.recipe.items():
        known = method.sources[stage]
        assert "default" in known or set(known) >= set(recipe), stage


@pytest.mark.parametrize("name", methods.names())
def test_every_stage_of_a_method_has_a_recipe(name):
    method = methods.read(name)
    assert set(method.stages) <= set(method.recipe) <= set(TRAINED)


@pytest.mark.parametrize("name", methods.names())
def test_what_a_size_or_variant_sets_exists(name):
    method = methods.read(name)
    for values in [*method.sizes.values(), *(variant.set for variant in method.variants.values())]:
        for text in set(values) - {"stages"}:
            place = parse_address(text)
            if place.part == "options":
                assert place.name in method.options[place.stage], text


@pytest.mark.parametrize("name", methods.names())
def test_a_methods_code_has_its_view_and_its_objective(name):
    module = methods.load(name)
    assert list(inspect.signature(module.view).parameters) == ["stage"]
    assert list(inspect.signature(module.objective).parameters) == ["stage", "parts"]


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(BenchError, match="Did you mean deit"):
        methods.read("diet")


def test_reading_all_methods_imports_no_torch():
    code = "import sys; from bench import methods as m; [m.read(n) for n in m.names()]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
