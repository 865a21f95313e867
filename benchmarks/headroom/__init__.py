"""What each feature of the Hard scans leaves to win, and what simple and trained policies get of it."""
