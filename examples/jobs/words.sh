#!/bin/sh
# A job in any language is an executable file. Dropped into the queue, it is run once:
#
#     cp examples/jobs/words.sh ~/.jam/default/jobqueue/
#     inv dispatch --hire 1 ; inv logs words.sh
#
# It starts in the folder in which the workers were hired.
set -eu
echo "words in the texts, counted on $(hostname) as job $JAM_JOB of project $JAM_PROJECT:"
wc -w examples/texts/*.txt
