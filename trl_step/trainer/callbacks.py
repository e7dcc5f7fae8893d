"""What runs after every step: functions of a script, a progress bar, a table of samples."""

from trl_step.trainer.reports.callbacks import Callback, ProgressBar, SampleTable, StepReport, configured_callbacks

__all__ = ["Callback", "ProgressBar", "SampleTable", "StepReport", "configured_callbacks"]
