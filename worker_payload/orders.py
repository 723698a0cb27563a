"""What an agent tells its workers: the first words of its commands (see `Worker._do`)."""

CODE, BEGIN, TASK, END, DROP, RELEASE, AGAIN, PART, SHARE = range(9)
