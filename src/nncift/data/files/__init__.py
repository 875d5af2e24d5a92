"""The rows of one file: compression, encoding and format, by content."""
