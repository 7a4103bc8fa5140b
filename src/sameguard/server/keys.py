"""Proofs and their keys from the settings; without any key, one that lives and dies with this process."""

import secrets
from binascii import Error, unhexlify

from sameguard.errors import ConfigurationError
from sameguard.policies import PUZZLES
from sameguard.server.proofs import KEY_BYTES, ProofKey, Proofs
from sameguard.server.settings import ProofSettings


def make_proofs(settings: ProofSettings, *, boot_id: str | None) -> Proofs:
    """Proofs as the settings say. boot_id: see `Proofs`. Raises ConfigurationError."""
    return Proofs(
        read_keys(settings),
        PUZZLES[settings.puzzle],
        ttl_seconds=settings.ttl_seconds,
        worst_seconds=settings.worst_seconds,
        skew_seconds=settings.skew_seconds,
        boot_id=boot_id,
    )


def read_keys(settings: ProofSettings) -> list[ProofKey]:
    """The first signs. Raises ConfigurationError for what is not kid:hex, a key that is too short, or a file that cannot be read.

    Of all that stands in `proofs` a message shows the file's path alone, which the settings refuse where it reads as a key.
    """
    if settings.keys is not None:
        entries, where = settings.keys.get_secret_value().split(","), "proofs.keys"
    elif settings.keys_file is not None:
        where = f"proofs.keys_file {settings.keys_file}"
        try:
            entries = settings.keys_file.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{where} must be readable text, got {type(error).__name__}.") from error
    else:
        return [ProofKey("process", secrets.token_bytes(KEY_BYTES))]
    keys = [_key(entry.strip(), where) for entry in entries if entry.strip()]
    if not 1 <= len(keys) <= 2:
        raise ConfigurationError(f"{where} must hold one or two keys, got {len(keys)}.")
    return keys


def _key(entry: str, where: str) -> ProofKey:
    """The entry itself never stands in a message: it is a secret."""
    kid, colon, text = entry.partition(":")
    try:
        secret = unhexlify(text)
    except (Error, ValueError) as error:
        raise ConfigurationError(f"{where} must be kid:hex with an even number of hexadecimal digits, got something else.") from error
    if not colon:
        raise ConfigurationError(f"{where} must be kid:hex, got an entry without a colon.")
    return ProofKey(kid, secret)
