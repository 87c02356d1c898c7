"""Every error has a message and a hint, and a misspelt name finds its neighbour."""

import pytest

from pinxit import errors


def test_every_error_is_a_pinxit_error_and_is_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    kinds = [
        kind for kind in vars(errors).values() if getattr(kind, "__module__", "") == errors.__name__
    ]
    kinds = [kind for kind in kinds if isinstance(kind, type)]
    assert len(kinds) == 9
    for kind in kinds:
        assert issubclass(kind, errors.PinxitError)
        assert kind.__name__ in tree
        assert kind.__doc__
        error = kind("what is wrong", "what to do")
        assert (error.message, error.hint) == ("what is wrong", "what to do")
        assert str(error) == "what is wrong\nhint: what to do"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("dreamboth", "did you mean dreambooth? known: dreambooth, textual-inversion"),
        ("Textual_Inversion", "did you mean textual-inversion? known: "),
        ("xyz", "known: dreambooth, textual-inversion"),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    said = errors.did_you_mean(word, ["textual-inversion", "dreambooth"])
    assert said.startswith(hint)


def test_nothing_known() -> None:
    assert errors.did_you_mean("x", []) == "known: none"
