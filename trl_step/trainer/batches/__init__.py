"""What a batch is: the checks of what a user gives, its layout, and what is known of it."""
