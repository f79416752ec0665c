"""What a person sees of a run while it goes on; imports neither torch nor the rest, and shows nothing unless opened."""
