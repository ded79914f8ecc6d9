"""Computing the cells of a plan: jobs, where they run, the stages of a job, and the record at the end."""
