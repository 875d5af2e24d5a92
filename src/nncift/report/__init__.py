"""What a run did: terminal summary, summary.json, report.html; and the page of a comparison."""
