"""The grammar of every entry point, and what the terminal shows of its errors; imports neither torch nor the rest."""
