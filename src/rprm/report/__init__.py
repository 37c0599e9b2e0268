"""Results for people: panels and tables in a terminal."""
