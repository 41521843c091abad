"""Work that is claimed is done once, and taken over from a process that died."""

import socket
import subprocess
import time

from jaxdpo.storage import claims
from jaxdpo.storage.claims import Claims, touched


def test_claim_that_nobody_touches_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_STALE", 0.2)
    monkeypatch.setattr(claims, "_TOUCH", 0.02)
    mine, others, claim = Claims(), Claims(), tmp_path / "x.claim"
    assert mine.take(claim)
    with touched(claim):
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            assert not others.take(claim)
            time.sleep(0.01)
    # It is removed with the work, and may be left behind by a process that died.
    assert not claim.exists()
    claim.write_text("another-machine 1")
    assert not others.take(claim)
    time.sleep(0.3)
    assert others.take(claim)
    # On this machine it is known at once.
    died = subprocess.Popen(["true"])
    died.wait()
    claim.write_text(f"{socket.gethostname()} {died.pid}")
    assert Claims().take(claim)
    assert not Claims().take(claim)
