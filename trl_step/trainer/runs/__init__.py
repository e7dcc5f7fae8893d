"""What a run keeps: its state, its identity, the folder they are saved in, random streams, the data loader."""
