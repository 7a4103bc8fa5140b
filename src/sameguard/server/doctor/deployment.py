"""The guard's own side: settings that weaken it, its artefact, its replay store, and whether all of it fits the model that is served."""

import asyncio
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

from sameguard.errors import SameguardError
from sameguard.protocol import DIALECTS, check_metadata
from sameguard.runtime import Scorer
from sameguard.server.doctor.findings import Finding
from sameguard.server.doctor.probing import Prober
from sameguard.server.replay import ReplayStoreWarning, open_redis
from sameguard.server.settings import Settings
from sameguard.server.snapshot import model_contract

LOOPBACK = ("127.0.0.1", "::1", "localhost")


async def check_deployment(prober: Prober, settings: Settings, upstream_answers: bool, clock: Callable[[], float]) -> list[Finding]:
    """Settings, artefact, store and machine; the served model where the model server answers."""
    findings = [*_mode(settings), *_admin(settings), *_files(settings), _torch()]
    if settings.proofs.shared_store is None:
        findings.append(Finding("replay store", "ok", "memory: right for one process, and challenges die with it"))
    else:
        findings += await _store(settings, settings.proofs.shared_store, clock)
    try:
        scorer = await asyncio.to_thread(Scorer, settings.artifact, engine=settings.scorer.engine, threads=settings.scorer.threads)
    except (SameguardError, OSError) as error:
        return [*findings, Finding("artefact", "problem", str(error), "the guard will not start with it")]
    findings.append(_artifact(settings, scorer))
    if upstream_answers:
        findings.append(await _metadata(prober, settings, scorer))
    return findings


def _mode(settings: Settings) -> list[Finding]:
    findings = []
    if settings.mode == "shadow":
        findings.append(
            Finding("mode", "warning", "shadow: everything is answered, whatever its score", "mode: enforce, once the log looks right")
        )
    elif settings.rollout < 1:
        share = f"{settings.rollout:.0%} of principals"
        findings.append(Finding("mode", "warning", f"enforce for {share}: the others are only watched", "rollout: 1"))
    else:
        findings.append(Finding("mode", "ok", f"enforce, policy {settings.policy.kind}"))
    if settings.scorer.fail_open:
        findings.append(
            Finding(
                "scorer.fail_open",
                "warning",
                "a failing scorer lets queries pass unscored",
                "leave it out: crashing the scorer must buy nothing",
            )
        )
    return findings


def _admin(settings: Settings) -> list[Finding]:
    if settings.admin.port is None:
        return [Finding("admin port", "ok", "off")]
    if settings.admin.host in LOOPBACK:
        return [Finding("admin port", "ok", f"{settings.admin.host}, loopback")]
    found = f"{settings.admin.host} is not loopback; a token is required there"
    return [Finding("admin port", "warning", found, "admin.host: 127.0.0.1, or close it to clients")]


def _files(settings: Settings) -> list[Finding]:
    """File modes. The artefact is a secret: who holds it can filter queries with it before sending them."""
    findings = [_mode_of("artefact files", list(settings.artifact.glob("*")), "a thief who reads them filters queries with them")]
    if settings.proofs.keys_file is not None:
        findings.append(_mode_of("proofs.keys_file", [settings.proofs.keys_file], "who reads it forges proofs"))
    return findings


def _mode_of(check: str, paths: list[Path], why: str) -> Finding:
    try:
        open_ones = [path for path in paths if path.stat().st_mode & 0o077]
    except OSError as error:
        return Finding(check, "problem", f"{error.filename}: {error.strerror}", "let the guard's user read it")
    if not paths:
        return Finding(check, "unknown", "there are none")
    if open_ones:
        remedy = f"chmod 600 {open_ones[0].parent}/*" if len(paths) > 1 else f"chmod 600 {open_ones[0]}"
        return Finding(check, "warning", f"{len(open_ones)} of {len(paths)} can be read by others than their owner: {why}", remedy)
    return Finding(check, "ok", "readable by their owner only")


def _artifact(settings: Settings, scorer: Scorer) -> Finding:
    if scorer.calibration is None:
        return Finding("artefact", "problem", "not calibrated: the guard will not start", f"sameguard calibrate {settings.artifact}")
    digest = scorer.manifest["sha256"]
    if settings.artifact_digest is None:
        return Finding("artefact", "warning", "whole, but not pinned: whoever can write there can replace it", f"artifact_digest: {digest}")
    if settings.artifact_digest != digest:
        return Finding("artefact", "problem", f"digest {digest} is not artifact_digest", "restore the artefact, or pin the new one")
    return Finding("artefact", "ok", f"whole, calibrated and pinned; scores on {scorer.provider}")


async def _metadata(prober: Prober, settings: Settings, scorer: Scorer) -> Finding:
    """The check that the guard makes at its start."""
    name = "served model"
    try:
        model = model_contract(settings, scorer, False)
        dialect = DIALECTS[settings.upstream.dialect](model)
        if dialect.metadata_path is None:
            return Finding(
                name, "unknown", f"dialect {settings.upstream.dialect} has no metadata to compare", "canary queries compare answers"
            )
        reply = await prober.get(dialect.metadata_path)
        if reply.status != 200:
            return Finding(name, "unknown", f"metadata answers {reply.status or reply.error}", "check upstream.model and upstream.version")
        check_metadata(dialect.parse_metadata(reply.body), model)
    except SameguardError as error:
        return Finding(name, "problem", str(error), "upstream, its settings and the artefact must be of one model")
    return Finding(name, "ok", f"{model.name} has the artefact's input and output")


async def _store(settings: Settings, address: str, clock: Callable[[], float]) -> list[Finding]:
    """The replay store: whether it may forget, and whether its clock is ours."""
    name = "replay store"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReplayStoreWarning)
        try:
            store = await open_redis(address, skew_seconds=settings.proofs.skew_seconds)
        except SameguardError as error:
            return [Finding(name, "problem", str(error), "no proof can be redeemed without it")]
    forgets = [str(warning.message) for warning in caught if issubclass(warning.category, ReplayStoreWarning)]
    remedy = "CONFIG SET maxmemory-policy noeviction"
    findings = [Finding(name, "warning", forgets[0], remedy) if forgets else Finding(name, "ok", "maxmemory-policy is noeviction")]
    try:
        before = clock()
        seconds, microseconds = await store.client.time()
        after = clock()
        findings.append(_skew(settings, seconds + microseconds / 1e6 - (before + after) / 2))
        kept = dict(await store.client.config_get("appendonly")).get("appendonly")
        if kept not in ("yes", b"yes"):
            found = "keeps no append-only file: after a restart, spent proofs that are still alive can be spent again"
            findings.append(Finding("replay store file", "warning", found, "CONFIG SET appendonly yes"))
    except Exception as error:  # managed servers forbid commands, each in its own way
        findings.append(Finding("replay store clock", "unknown", f"{type(error).__name__}: {error}"))
    finally:
        await store.close()
    return findings


def _skew(settings: Settings, skew: float) -> Finding:
    name, found = "replay store clock", f"{abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > settings.proofs.ttl_seconds / 4:
        return Finding(name, "problem", found, "set both clocks by NTP: proofs expire too early or are remembered too briefly")
    if abs(skew) > settings.proofs.skew_seconds:
        return Finding(name, "warning", f"{found}, more than proofs.skew_seconds", "set both clocks by NTP, or raise proofs.skew_seconds")
    return Finding(name, "ok", found)


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", "ok", "not installed: the guard does not need it")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return Finding("torch", "ok", f"{version} is installed; the guard does not load it, and an image without it is smaller")
