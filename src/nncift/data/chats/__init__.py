"""Chats: their notations, role markers in text, and the columns beside them that belong to a sample."""
