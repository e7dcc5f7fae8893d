"""What a run reports: trackers, callbacks, cost, pushes to a hub, warnings."""
