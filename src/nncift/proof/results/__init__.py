"""What the trials show: metrics with intervals, tables, pages."""
