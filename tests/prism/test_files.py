import os
import stat

import pytest

from prism.errors import ConfigError
from prism.files import write_file, write_json


def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path):
    write_file(tmp_path / "a" / "b.txt", b"one")
    write_file(tmp_path / "a" / "b.txt", b"two")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"two"


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "map.json"
    write_json(path, {"old": True})
    before = path.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(ConfigError, match=r"can't be written .No space left.*choose another place"):
        write_file(path, b"new")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["map.json"]


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "target.txt")
    write_file(tmp_path / "link.txt", b"x")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "target.txt").read_bytes() == b"x"
    write_file(tmp_path / "mode.txt", b"x")
    assert stat.S_IMODE((tmp_path / "mode.txt").stat().st_mode) & 0o600 == 0o600
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", b"through")
    assert os.read(reader, 10) == b"through"
    os.close(reader)
