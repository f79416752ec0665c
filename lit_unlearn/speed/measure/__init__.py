"""How time, memory and operations are measured."""
