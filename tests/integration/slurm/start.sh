#!/bin/bash
# A SLURM of this machine alone, for tests, on the loopback: munged, slurmctld and slurmd from Debian's packages.
#   apt-get install -y slurm-wlm munge; bash start.sh DIR [NODES]; export SLURM_CONF=DIR/slurm.conf; ...; bash stop.sh DIR
# As root. Without systemd, cgroups or accounting; each of NODES (1) offers two processors, whatever there are. Processes
# of a step find each other by export MASTER_ADDR=127.0.0.1, for the names of the nodes lead nowhere.
set -euo pipefail
directory=$(realpath -m "$1")
nodes=${2:-1}
host=$(hostname -s)
mkdir -p "$directory/state"
if ! munge -n >/dev/null 2>&1; then
    install -d -o munge -g munge -m 755 /run/munge
    install -d -o munge -g munge -m 700 /var/lib/munge /var/log/munge
    runuser -u munge -- /usr/sbin/munged
    cp /run/munge/munged.pid "$directory/munged.pid"  # ours, to be stopped
fi
{
    cat <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmdParameters=config_overrides
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool-%n
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd-%n.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd-%n.log
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for node in $(seq "$nodes"); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((26820 + node)) CPUs=2 RealMemory=1000"
    done
} > "$directory/slurm.conf"
export SLURM_CONF=$directory/slurm.conf
/usr/sbin/slurmctld
for node in $(seq "$nodes"); do
    mkdir -p "$directory/spool-n$node"
    /usr/sbin/slurmd -N "n$node"
done
for _ in $(seq 100); do
    if [[ $(sinfo --noheader --Node --format %T 2>/dev/null | grep -c idle) == "$nodes" ]]; then
        exit 0
    fi
    sleep 0.1
done
sinfo
exit 1
