"""The end of the certificate that hospitals see is told a month before, by whoever can do something about it."""

import logging

import pytest
from typer.testing import CliRunner

from onehost.certificates import authority, certified, make_tls
from strategies import certificate
from strategies.certificate import Expiry, read_notice
from strategies.cli import app
from strategies.service import only


@pytest.mark.parametrize(
    ("days", "says"),
    [
        (31, ""),
        (29.5, "the certificate ends in 29 days ("),
        (-0.5, "the certificate has ended, so that no hospital gets in ("),
    ],
)
def test_the_last_month_is_told_in_the_log_and_with_the_hospitals(tmp_path, caplog, days, says):
    expiry = Expiry(tmp_path, certified(tmp_path / "tls", *authority(), days=days))
    with caplog.at_level(logging.WARNING):
        expiry.tend()
    assert read_notice(tmp_path).startswith(says) and bool(read_notice(tmp_path)) == bool(says)
    assert ("start the service again" in caplog.text) == bool(says)
    with only(tmp_path):
        told = CliRunner().invoke(app, ["sites", "--dir", str(tmp_path), "--json"])
    assert told.stdout == "{}\n" and told.stderr.strip() == read_notice(tmp_path)


def test_it_is_looked_at_again_and_told_once_a_day(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(certificate, "EVERY_SECONDS", 0)
    expiry = Expiry(tmp_path, certified(tmp_path / "tls", *authority(), days=9.5))
    for _ in range(3):
        expiry.tend()
    assert caplog.text.count("ends in 9 days") == 1
    expiry.ends["certificate"] -= certificate.SOON
    expiry.tend()
    assert "has ended" in read_notice(tmp_path)


def test_a_service_that_was_started_with_a_new_one_takes_the_notice_back(tmp_path):
    ca = authority()
    Expiry(tmp_path, certified(tmp_path / "tls", *ca, days=1)).tend()
    assert read_notice(tmp_path)
    Expiry(tmp_path, certified(tmp_path / "tls", *ca)).tend()
    assert read_notice(tmp_path) == ""


def test_the_authoritys_end_is_another_matter(tmp_path, monkeypatch):
    monkeypatch.setattr("onehost.certificates.DAYS", 5)
    tls = make_tls(tmp_path / "tls")
    Expiry(tmp_path, tls).tend()
    assert "certificate authority ends in 4 days" in read_notice(tmp_path) and "enrol anew" in read_notice(tmp_path)
