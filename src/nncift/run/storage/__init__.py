"""Files: complete or absent, with checksums, and one-line errors of the file system."""
