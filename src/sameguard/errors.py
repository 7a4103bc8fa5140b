"""Every exception that sameguard raises on purpose. Each is also the builtin that a caller would expect.

    SameguardError
    ├── InvalidQueryError      ValueError     a query breaks the input contract
    ├── InvalidVictimError     ValueError     the victim breaks its declared contract
    ├── InvalidDataError       ValueError     a data set cannot be used for what it was given for
    ├── ConfigurationError     ValueError     a setting is out of its range, or two settings contradict each other
    ├── CalibrationError       ValueError     the benign data cannot support what was asked of them
    ├── ArtifactError          ValueError     an artefact is damaged, foreign, too new, or bound to another engine
    ├── NotFittedError         RuntimeError   something was used before it was fitted, exported or calibrated
    ├── TrainingError          RuntimeError   training diverged or could not go on
    ├── BudgetExceededError    RuntimeError   an endpoint's query budget does not cover the batch
    ├── DataNotFoundError      FileNotFoundError   a data set is not where it was looked for
    └── DownloadError          OSError        a data set could not be fetched or failed its checksum

A message has four parts: name, rule, what was got, remedy.
"""


class SameguardError(Exception):
    """Base of all errors raised on purpose by sameguard."""


class InvalidQueryError(SameguardError, ValueError):
    """A query breaks the input contract."""


class InvalidVictimError(SameguardError, ValueError):
    """The victim breaks its declared contract."""


class InvalidDataError(SameguardError, ValueError):
    """A data set cannot be used for what it was given for."""


class ConfigurationError(SameguardError, ValueError):
    """A setting is out of its range, or two settings contradict each other."""


class CalibrationError(SameguardError, ValueError):
    """The benign data cannot support what was asked of them."""


class ArtifactError(SameguardError, ValueError):
    """An artefact is damaged, foreign, too new, or bound to another engine."""


class NotFittedError(SameguardError, RuntimeError):
    """Something was used before it was fitted, exported or calibrated."""


class TrainingError(SameguardError, RuntimeError):
    """Training diverged or could not go on."""


class BudgetExceededError(SameguardError, RuntimeError):
    """An endpoint's query budget does not cover the batch."""


class DataNotFoundError(SameguardError, FileNotFoundError):
    """A data set is not where it was looked for."""


class DownloadError(SameguardError, OSError):
    """A data set could not be fetched or failed its checksum."""
