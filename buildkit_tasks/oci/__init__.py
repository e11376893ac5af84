"""Images as bytes: sources to read them from, and what their documents and layers say."""
