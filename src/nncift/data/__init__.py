"""From a source of any known format and schema to samples."""
