import sys

from coursekit import progress


def test_silent_when_unattended(monkeypatch, capsys):
    monkeypatch.setenv("COURSEKIT_UNATTENDED", "1")
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_shows_a_bar_to_a_person_at_a_terminal(monkeypatch, capsys):
    monkeypatch.delenv("COURSEKIT_UNATTENDED")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err


def test_shows_a_bar_in_a_notebook(monkeypatch, capsys):
    monkeypatch.delenv("COURSEKIT_UNATTENDED")
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err


def test_silent_when_written_to_a_file(monkeypatch, capsys):
    monkeypatch.delenv("COURSEKIT_UNATTENDED")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
