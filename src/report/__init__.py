"""The page of runs: from what they have left in their folders to one HTML file."""
