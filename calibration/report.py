"""The validation's report as a file: drawn where plotly is installed, put off where it is not."""

from importlib.util import find_spec
from pathlib import Path

from moesim.evidence.validation import Validation


def write_validation_report(validation: Validation, folder: Path) -> str:
    """Write `report.html` into `folder`; return a line that says where it is, or how to draw it."""
    if find_spec("plotly") is None:
        return (
            f"no report drawn: plotly is not installed (pip install 'moesim[dashboard]'); "
            f"then: moesim-calibrate report {folder}"
        )
    from moesim.views.report import write_report

    path = folder / "report.html"
    write_report(
        path,
        title="Measured beside predicted",
        comparison=validation.comparison,
        measured=validation.measured,
        predicted=validation.predicted,
        facts=validation.facts,
        notes=validation.notes,
    )
    return f"report: {path}"
