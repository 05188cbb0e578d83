"""What people look at: words, tables, charts and the report; frames in, text and figures out."""
