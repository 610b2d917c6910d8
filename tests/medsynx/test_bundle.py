import io
import json
import zipfile

import pytest

from medsynx.bundle import fingerprint, new_key, read_bundle, write_bundle
from medsynx.errors import MedsynxError

FILES = {"privacy.json": b'{"private": true}', "artefact/tables.npz": b"\x00" * 64}


@pytest.fixture
def signed(tmp_path):
    new_key(tmp_path / "key.pem")
    write_bundle(tmp_path / "b.zip", FILES, tmp_path / "key.pem")
    return tmp_path


def rezip(raw: bytes, edit) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    edit(files)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def refused(source, **how) -> str:
    with pytest.raises(MedsynxError) as caught:
        read_bundle(source, **how)
    return caught.value.code


def test_round_trip_and_trust(signed):
    signer = fingerprint((signed / "key.pem.pub").read_bytes())
    bundle = read_bundle(signed / "b.zip", trusted=frozenset({signer}))
    assert bundle.private and bundle.signer == signer
    assert {n: b for n, b in bundle.files.items() if n != "statement.json"} == FILES
    assert refused(signed / "b.zip", trusted=frozenset({"0" * 64})) == "bundle-signature"
    assert refused(signed / "b.zip", trusted=frozenset()) == "bundle-signature"
    assert (signed / "key.pem").stat().st_mode & 0o077 == 0


def test_every_signed_byte_counts(signed):
    raw = (signed / "b.zip").read_bytes()
    for name in FILES:

        def flip(files, name=name):
            files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])

        assert refused(rezip(raw, flip)) == "bundle-changed"
    assert refused(rezip(raw, lambda f: f.update({"extra.txt": b"x"}))) == "bundle-changed"
    assert refused(rezip(raw, lambda f: f.pop("privacy.json"))) == "bundle-changed"


def test_a_broken_or_foreign_signature(signed, tmp_path):
    raw = (signed / "b.zip").read_bytes()

    def forge(files):
        envelope = json.loads(files["statement.json"])
        envelope["signatures"][0]["sig"] = envelope["signatures"][0]["sig"][::-1]
        files["statement.json"] = json.dumps(envelope).encode()

    assert refused(rezip(raw, forge)) == "bundle-signature"
    new_key(tmp_path / "other.pem")
    other = (tmp_path / "other.pem.pub").read_bytes()
    assert refused(rezip(raw, lambda f: f.update({"signer.pem": other}))) == "bundle-signature"
    assert refused(rezip(raw, lambda f: f.update({"signer.pem": b"no key"}))) == "bundle-signature"
    assert refused(rezip(raw, lambda f: f.pop("statement.json"))) == "bundle-unreadable"


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04broken", b"no zip at all"])
def test_no_bundle_at_all(raw):
    assert refused(raw) == "bundle-unreadable"


def test_a_flipped_byte_anywhere_in_the_file_is_refused_or_harmless(signed):
    """Flipping any single byte of the ZIP either is refused or leaves every file as it was signed."""
    raw = (signed / "b.zip").read_bytes()
    whole = read_bundle(raw).files
    for at in range(0, len(raw), 7):
        broken = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
        try:
            assert read_bundle(broken).files == whole
        except MedsynxError as error:
            assert error.code.startswith("bundle-")


def test_a_zip_bomb_is_refused_before_it_is_unpacked():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb", "w", force_zip64=True) as f:
        for _ in range(300):
            f.write(b"\0" * 2**20)
    assert refused(out.getvalue()) == "bundle-unreadable"
