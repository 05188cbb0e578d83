"""What can go wrong, one exception for each decision the caller can take.

MoesimError
 ├─ ScenarioError        fix the scenario, workload or trace file
 │   └─ CapacityError    it does not fit: needs X, has Y, try Z
 ├─ ProfileError         the profile is broken, or was not measured for this
 ├─ CalibrationError     the measurement is unstable, or the hosts differ
 └─ EngineError          the engine cannot load or run this model

Every message names the file, the field, the value and the remedy. Commands print it as one line
and exit with 2. What is doubtful but usable is a `MoesimWarning`, which reports show.
"""


class MoesimError(Exception):
    """Any failure that is not a bug of moesim; its text is one line for a person."""


class ScenarioError(MoesimError):
    """A scenario, workload or trace file says something that cannot be simulated."""


class CapacityError(ScenarioError):
    """The scenario asks for more memory than the device has."""


class ProfileError(MoesimError):
    """A profile file is broken, of another format, or does not cover what is asked."""


class CalibrationError(MoesimError):
    """A measurement is unstable or belongs to another host or setting."""


class EngineError(MoesimError):
    """A checkpoint or request that the engine cannot serve."""


class MoesimWarning(UserWarning):
    """A result that can be used, with a reservation the reader should know."""
