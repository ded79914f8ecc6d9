"""A leaderboard and a comparison in every format: one module per format, `text` for what they share.

The templates, scripts and styles of the offline pages lie here too; `html` puts a page together, for reports as well."""
