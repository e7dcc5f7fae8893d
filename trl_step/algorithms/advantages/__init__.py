"""How advantages are computed: values, rewards and masks to advantages and returns."""
