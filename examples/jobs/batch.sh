#!/bin/sh
# Workers inside a batch system: each allocation hires as many as it has CPUs, all of them work for
# one project in the shared home.
#
#     inv submit --project brute --exe './brute {a} {b}' --grid a=0..999 --grid b=0..599
#     for n in 1 2 3 4 5 6 7 8 9 10; do sbatch examples/jobs/batch.sh; done      # or qsub
#     inv dispatch --project brute --joblog brute.tsv
#
#SBATCH --ntasks=1 --cpus-per-task=8 --time=08:00:00
#PBS -l nodes=1:ppn=8 -l walltime=08:00:00
cd "${SLURM_SUBMIT_DIR:-${PBS_O_WORKDIR:-.}}" || exit
inv hire 8 --hosts localhost --project brute
trap 'inv fire --jobs --hosts localhost --project brute; kill $!' TERM
sleep 8h & # the batch system ends what was started here when this script ends
wait
