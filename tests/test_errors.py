"""Every error has a message and a hint; a misspelled name gets a suggestion."""

from pathlib import Path

import pytest

from pinxit import errors


def test_every_error_is_a_pinxit_error_and_is_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    classes = {
        item
        for item in vars(errors).values()
        if isinstance(item, type) and item.__module__ == errors.__name__
    }
    assert len(classes) == 9
    for error_class in classes:
        assert issubclass(error_class, errors.PinxitError)
        assert error_class.__name__ in tree
        assert error_class.__doc__
        error = error_class("what is wrong", "what to do")
        assert (error.message, error.hint) == ("what is wrong", "what to do")
        assert str(error) == "what is wrong\nhint: what to do"


def test_the_old_name_of_the_image_error_still_works() -> None:
    assert errors.PictureError is errors.ImageError


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("dreamboth", "did you mean dreambooth? known: dreambooth, textual-inversion"),
        ("Textual_Inversion", "did you mean textual-inversion? known: "),
        ("xyz", "known: dreambooth, textual-inversion"),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    text = errors.did_you_mean(word, ["textual-inversion", "dreambooth"])
    assert text.startswith(hint)


def test_did_you_mean_without_known_names() -> None:
    assert errors.did_you_mean("x", []) == "known: none"


def test_a_path_with_spaces_is_quoted_where_it_is_to_be_typed() -> None:
    assert errors.typed(Path("runs/my-dog")) == "runs/my-dog"
    assert errors.typed(Path("runs/my dog")) == "'runs/my dog'"
