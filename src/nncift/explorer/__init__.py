"""A finished run as a table of all samples, with a map and reasons, opened in the browser by embedding-atlas."""
