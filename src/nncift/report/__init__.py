"""What a run did: terminal summary, summary.json, report.html."""
