"""Many runs from one file: which they are, what they share, how they are started, what has become of them."""
