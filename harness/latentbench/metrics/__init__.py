"""What a metric is, the numbers it gives, and which metrics a record was made with."""
