"""From options and files to what is trained and tested, checked before anything costly."""
