"""The budgets see what they are meant to see."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    file = Path(__file__).parent.parent / "tools" / "budget.py"
    spec = importlib.util.spec_from_file_location("budget", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def excess(budget: ModuleType, text: str, name: str = "brush.py") -> str:
    return "\n".join(budget.over_budget(Path(name), text))


def test_long_files_long_functions_many_branches_empty_names(budget: ModuleType) -> None:
    assert "301 lines, 300 allowed" in excess(budget, "x = 1\n" * 301)
    assert "f has 51 lines" in excess(budget, "def f():\n" + "    x = 1\n" * 50)
    assert "f has 9 branches" in excess(budget, "def f(x):\n" + "    if x: pass\n" * 9)
    assert "says nothing" in excess(budget, "", "utils.py")


def test_what_is_within_budget_is_quiet(budget: ModuleType) -> None:
    inner = "def f(x):\n    def g():\n" + "        if x: pass\n" * 8 + "    if x: pass\n"
    assert excess(budget, inner) == ""
    assert excess(budget, "x = 1\n" * 300) == ""


def test_the_whole_has_a_budget(budget: ModuleType, tmp_path: Path) -> None:
    for number in range(budget.TOTAL_LINES // 270 + 1):
        (tmp_path / f"a{number}.py").write_text("x = 1\n" * 270)
    assert budget.main(str(tmp_path)) == 1
    assert budget.main(str(tmp_path / "a0.py")) == 0
