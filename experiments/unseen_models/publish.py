"""Put the results of a set into the repository."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from experiments.lib.places import RESULTS as ALL_RESULTS
from experiments.unseen_models.sets import NEWEST, SWEEPS, HeldOut
from prism.config import load_json
from prism.cost import PROFILES, CalibratedProfile

RESULTS = ALL_RESULTS / "unseen_models"
ARCHIVES = {"calibration": ("calibration", "probes.jsonl"), "held_out": SWEEPS}  # apart, as what was fitted must be


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an archive of raw traces, so that claims about it can be checked after it has left the tree."""

    sha256: str  # of the archive
    bytes: int
    traces: int
    traces_digest: str
    models: tuple[str, ...]
    cells: int
    first_created: str
    last_created: str


def publish(output: Path, held_out: HeldOut) -> None:
    """Copy figures, predictions, profile and raw traces of a set into the repository."""
    results = RESULTS / held_out
    results.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "predictions.json"):
        shutil.copy(output / name, results / name)
    profile, path = load_json(output / "profile.json", CalibratedProfile), results / "profile.json"
    if held_out is HeldOut.SET_1:
        profile, path = msgspec.structs.replace(profile, name="x86-core"), PROFILES / "x86-core.json"
    path.write_bytes(pretty(profile))
    for name, members in ARCHIVES.items():
        with tarfile.open(results / f"{name}.tar.xz", "w:xz") as packed:
            for member in members:
                packed.add(output / member, f"{output.name}/{member}", filter=_plain)
    contents = {name: contents_of(results / f"{name}.tar.xz") for name in ARCHIVES}
    (results / "archives.json").write_bytes(pretty(contents))
    if held_out is NEWEST:
        newest = {"set": held_out.value, **json.loads((results / "summary.json").read_bytes())}
        (RESULTS / "summary.json").write_bytes(pretty(newest))


def contents_of(archive: Path) -> Contents:
    """Describe an archive by the hashes and headers of its traces."""
    digests, headers = [], []
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.name.endswith(".jsonl") and "probes" not in member.name:
                raw = packed.extractfile(member).read()  # type: ignore[union-attr]
                digests.append(hashlib.blake2b(raw, digest_size=8).hexdigest())
                headers.append(json.loads(raw.split(b"\n", 1)[0]))
    cells = {
        json.dumps([h["model"], h["plan"], h["batch"], h["link"] if h["plan"]["devices"] > 1 else ""], sort_keys=True)
        for h in headers
    }
    return Contents(
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        bytes=archive.stat().st_size,
        traces=len(digests),
        traces_digest=traces_digest(digests),
        models=tuple(sorted({h["model"] for h in headers})),
        cells=len(cells),
        first_created=min(h["created"] for h in headers),
        last_created=max(h["created"] for h in headers),
    )


def traces_digest(digests: Iterable[str]) -> str:
    """Hash the hashes of a set of traces, in whatever order they come."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def pretty(value: Any) -> bytes:
    """Encode a value as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Drop the lock file, and the owner of every other file."""
    if member.name.endswith(".lock"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
