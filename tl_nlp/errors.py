"""The error tree: what can go wrong, each with the exit status that the command line answers.

TLError
├── RecipeError      a recipe, an override or a call that names what is not there
├── DataError        rows, columns, targets or files that do not fit the recipe
├── CheckpointError  pretrained weights that are missing, unsafe or of another shape
├── RunError         a run directory that is damaged, or a training that failed
│   ├── NoRunError       a path that is no run
│   ├── LockedError      a run that another process writes
│   ├── NoRoomError      a disk without room for what is to be written
│   └── NotFiniteError   a step whose loss or gradient is no number
├── JobError         a training in the queue that cannot do so now
│   ├── NoJobError       an id that no training has
│   └── FullQueueError   as many wait as may
├── HubError         the Hugging Face Hub is out of reach or said no
├── BusyError        a server that has enough to do already
└── HardwareError    this machine cannot do what the recipe asks

A message says what is wrong with which value, what there is instead, and what mends it.
"""


class TLError(Exception):
    """Base of all errors that tl_nlp raises on purpose."""

    exit_status = 1


class RecipeError(TLError, ValueError):
    """A choice that cannot be made; `key` is its dotted place in the recipe."""

    exit_status = 2

    def __init__(self, message: str, key: str = ""):
        self.message, self.key = message, key
        super().__init__(f"{key}: {message}" if key else message)


class DataError(TLError, ValueError):
    exit_status = 2


class CheckpointError(TLError, ValueError):
    exit_status = 2


class RunError(TLError, RuntimeError):
    pass


class NoRunError(RunError):
    exit_status = 2


class LockedError(RunError):
    pass


class NoRoomError(RunError):
    pass


class NotFiniteError(RunError):
    """A step whose loss or gradient is no number; `rows` are the places of its rows."""

    def __init__(self, message: str, loss: float, norm: float, rows: list[int]):
        self.loss, self.norm, self.rows = loss, norm, rows
        super().__init__(message)


class JobError(TLError, RuntimeError):
    """What cannot be done with a job in its status."""


class NoJobError(JobError, LookupError):
    """An id that no job has."""


class FullQueueError(JobError):
    """As many jobs wait as may."""


class HubError(TLError, ConnectionError):
    pass


class BusyError(TLError, RuntimeError):
    pass


class HardwareError(TLError, RuntimeError):
    pass


class StepMemoryError(HardwareError):
    """A training step does not fit in memory, however few sequences are in a pass."""


class Interrupted(TLError):
    """A signal stopped a training that can go on."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_status = 128 + signal_number
