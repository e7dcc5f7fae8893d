"""Layer 6: names that TRL keeps in `trl.experimental`."""
