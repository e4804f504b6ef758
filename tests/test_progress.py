from coursekit import progress


def test_silent_when_unattended(monkeypatch, capsys):
    monkeypatch.setenv("COURSEKIT_UNATTENDED", "1")
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_shows_a_bar_to_a_person(monkeypatch, capsys):
    monkeypatch.delenv("COURSEKIT_UNATTENDED")
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err
