"""Parts of `trl_step.port.rewrite`: what is not a keyword of a call."""
