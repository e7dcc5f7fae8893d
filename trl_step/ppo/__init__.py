"""Legacy import path: the code is in `trl_step.algorithms` and `trl_step.head`."""
