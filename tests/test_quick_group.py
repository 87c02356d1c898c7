"""Which tests `make check` runs."""

from tests.conftest import surplus_instances


def test_few_instances_of_each_test_are_quick() -> None:
    many = [f"tests/test_a.py::test_many[{number}]" for number in range(30)]
    names = [*many, "tests/test_a.py::test_one", "tests/test_b.py::test_many[0]"]
    surplus = surplus_instances(names, 2)
    assert surplus < set(many)
    assert len(surplus) == 28
    assert surplus == surplus_instances(names[::-1], 2)  # the same ones in any order
