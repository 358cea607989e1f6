"""Names from settings, and writing that nobody sees half done."""

import pytest

from shadow.artifacts.files import key_of, making, write_json, writing


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_after(_):
    raise RuntimeError("mid-way")


def test_a_key_depends_on_the_settings_and_not_on_their_order():
    one = key_of({"a": 1, "b": [1, 2.5, None], "c": {"d": True, "e": "x"}})
    assert one == key_of({"c": {"e": "x", "d": True}, "b": [1, 2.5, None], "a": 1})
    assert len(one) == 10
    assert set(one) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "other",
    [{"a": 2, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1, "b": [1, 2], "c": None}, {"a": "1", "b": [1, 2]}],
)
def test_other_settings_have_another_key(other):
    assert key_of(other) != key_of({"a": 1, "b": [1, 2]})


def test_a_key_is_the_same_on_every_machine():
    assert key_of({"model": "tiny", "level": 0.5}) == "95431fe0ed"


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    file = tmp_path / "new" / "result.txt"
    with writing(file) as unfinished:
        unfinished.write_text("half")
        assert not file.exists()
        unfinished.write_text("whole")
    assert file.read_text() == "whole"
    assert contents(file.parent) == ["result.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "result.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="mid-way"), writing(file) as unfinished:
        fail_after(unfinished.write_text("half"))
    assert file.read_text() == "old"
    assert contents(tmp_path) == ["result.txt"]


def test_a_file_that_a_killed_process_left_half_written_is_taken_over(tmp_path, kill_while_writing):
    file = tmp_path / "result.txt"
    kill_while_writing(file)
    with writing(file) as unfinished:
        unfinished.write_text("whole")
    assert file.read_text() == "whole"
    assert contents(tmp_path) == ["result.txt"]


def test_a_folder_appears_whole(tmp_path):
    folder = tmp_path / "new" / "model"
    with making(folder) as unfinished:
        (unfinished / "weights").write_text("w")
        assert not folder.exists()
    assert contents(folder) == ["weights"]
    assert contents(folder.parent) == ["model"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="mid-way"), making(tmp_path / "model") as unfinished:
        fail_after((unfinished / "weights").write_text("w"))
    assert contents(tmp_path) == []


def test_json_is_written_alike_whatever_the_order_of_its_keys(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1, "y": {"b": 1, "a": 2}})
    write_json(tmp_path / "b.json", {"y": {"a": 2, "b": 1}, "x": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert contents(tmp_path) == ["a.json", "b.json"]
