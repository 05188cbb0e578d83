"""A server's own log: an iteration's cost fitted to its beginning, and the rest predicted from it.

`reading` makes records of the log, `fitting` finds the cost's parameters, `judging` predicts and
compares.
"""

from moesim.evidence.server_log.fitting import Fit, fit
from moesim.evidence.server_log.judging import judge, predict, typical_errors
from moesim.evidence.server_log.reading import ServerLog, load_server_log

__all__ = ["Fit", "ServerLog", "fit", "judge", "load_server_log", "predict", "typical_errors"]
