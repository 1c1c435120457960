"""Running a network: compiled, in bounded memory, on all cores."""
