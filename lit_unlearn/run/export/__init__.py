"""What a run says of the model it exports, and how it sends it away."""
