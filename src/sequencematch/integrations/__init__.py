"""Other people's programs with deletions applied. Each module needs its own optional package."""
