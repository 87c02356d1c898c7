"""The budgets count what they are meant to count."""

from pathlib import Path

from tools import budget


def excess(text: str, name: str = "brush.py") -> str:
    return "\n".join(budget.over_budget(Path(name), text))


def test_long_files_long_functions_many_branches_empty_names() -> None:
    assert "251 code lines, 250 allowed" in excess("x = 1\n" * 251)
    assert "f has 41 code lines" in excess("def f():\n" + "    x = 1\n" * 40)
    assert "f has 9 branches" in excess("def f(x):\n" + "    if x: pass\n" * 9)
    assert "says nothing" in excess("", "utils.py")


def test_blank_lines_comments_and_docstrings_are_not_counted() -> None:
    inner = "def f(x):\n    def g():\n" + "        if x: pass\n" * 8 + "    if x: pass\n"
    assert excess(inner) == ""
    assert excess("x = 1\n\n# why\n" * 250) == ""
    assert excess('"""' + "What\n\nit is.\n" * 200 + '"""\n' + "x = 1\n" * 250) == ""
    assert "251 code lines" in excess('x = """' + "\n" * 250 + '"""\n')


def test_the_whole_has_a_budget(tmp_path: Path) -> None:
    for number in range(budget.TOTAL_LINES // 240 + 1):
        (tmp_path / f"a{number}.py").write_text("x = 1\n" * 240)
    assert budget.main(str(tmp_path)) == 1
    assert budget.main(str(tmp_path / "a0.py")) == 0
