"""Certificates made when a test needs one; no key is kept anywhere."""

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """Make a self-signed certificate for names with the openssl program: (certificate, key)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject_names = ",".join(
        f"IP:{name}" if name.replace(".", "").isdigit() or ":" in name else f"DNS:{name}"
        for name in names
    )
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "30"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", f"/O=netsonde tests/CN={names[0]}"),
            *("-addext", f"subjectAltName={subject_names}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
