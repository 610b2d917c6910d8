"""A file takes another's place whole or not at all."""

import os
import stat
import threading

import pytest

from medsynx import files


def test_a_file_is_there_whole_or_not_at_all_and_on_the_disk(tmp_path, monkeypatch):
    place, done, fsync, replace = tmp_path / "f", [], os.fsync, os.replace

    def synced(file: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        fsync(file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    files.write(place, "first")
    assert done == ["file", "name", "folder"] and place.read_text() == "first"
    with pytest.raises(RuntimeError), files.replacing(place) as out:
        out.write(b"half")
        raise RuntimeError
    assert place.read_text() == "first" and list(tmp_path.iterdir()) == [place]


def test_a_private_file_is_private_from_its_first_byte(tmp_path):
    with files.replacing(tmp_path / "f", files.PRIVATE) as out:
        (part,) = tmp_path.iterdir()
        out.write(b"secret")
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    (tmp_path / "g").write_text("open")
    files.write(tmp_path / "g", b"secret", files.PRIVATE)
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o600


def test_two_threads_that_write_one_file_do_not_mix(tmp_path):
    with files.replacing(tmp_path / "f") as out:
        out.write(b"first")
        other = threading.Thread(target=files.write, args=(tmp_path / "f", "second"))
        other.start()
        other.join()
        assert (tmp_path / "f").read_text() == "second"
    assert (tmp_path / "f").read_text() == "first" and len(list(tmp_path.iterdir())) == 1
