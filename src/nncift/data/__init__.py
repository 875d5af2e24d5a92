"""From a source, whatever its format and schema, to samples."""
