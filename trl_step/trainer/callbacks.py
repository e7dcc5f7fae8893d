"""What runs after every step: functions of a script, a progress bar, a table of samples, rich's bars of a `Trainer`."""

from trl_step.trainer.reports.callbacks import Callback, ProgressBar, SampleTable, StepReport, configured_callbacks
from trl_step.trainer.text.rich_progress import RichProgressCallback

__all__ = ["Callback", "ProgressBar", "RichProgressCallback", "SampleTable", "StepReport", "configured_callbacks"]
