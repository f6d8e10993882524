"""Reports: tables and pictures made from result files and published numbers, never from a process's memory."""
