"""What trainers of a language model are made of, and what subclasses of release 0.7 call of it."""
