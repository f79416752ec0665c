"""What is read, checked and tried before a run writes its first file."""
