"""Jobs for the job directory; docs/jobs.md and the README say how they are run."""
