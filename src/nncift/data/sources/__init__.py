"""Where rows come from: files, folders, saved datasets, hub ids, data in memory, mixtures."""
