"""Every exception that users see, and the exit codes. Each message names the value, the limit and the remedy."""

MENDABLE = 2  # exit code of what the user can mend
INTERRUPTED = 130  # exit code after Ctrl-C, as a shell's: 128 and the signal's number


class PrismError(Exception):
    """Base class: a CLI prints it as one line and exits with `exit_code`."""

    exit_code = MENDABLE


class ConfigError(PrismError):
    """A configuration file, a flag or a specification can't be used."""


class PlanError(PrismError, ValueError):
    """A plan doesn't fit the model, the tokens or the number of devices.

    A ValueError too, so that msgspec says where in a file such a plan stands.
    """


class UnsupportedModelError(PrismError):
    """The model can't be partitioned; the message lists what can."""


class InputError(PrismError):
    """Images, texts or weights can't be read or don't fit the model."""


class TraceError(PrismError):
    """A trace file, or a map made of them, can't be read."""


class ExchangeError(PrismError):
    """The group of ranks could not be formed, or broke."""


class PeerLostError(ExchangeError):
    """A peer died, or stayed silent past the timeout, while a batch was under way."""
