"""What came of an operation."""
