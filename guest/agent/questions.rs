//! Answers to what the host asks about the container as a whole.

use vmrun_protocol::message::{Answer, Failure, INIT, Process};
use vmrun_protocol::plan::Bytes;

use crate::cgroup::Cgroup;
use crate::execs::Execs;
use crate::processes;
use crate::procfs::Procfs;
use crate::watch::Watch;

/// Changes limits.
pub fn update(
    cgroup: &Cgroup,
    watch: &mut Watch,
    writes: &[(Bytes, Bytes)],
) -> Result<Answer, Failure> {
    cgroup.update(writes)?;
    watch.memory(cgroup)?;
    Ok(Answer::Done)
}

/// Which processes there are in `cgroup`, whose first one is `init`.
pub fn processes(cgroup: &Cgroup, init: u32, execs: &Execs, proc: &Procfs) -> Vec<Process> {
    let mut pids = cgroup.pids();
    pids.sort_unstable();
    let booted_ns = processes::booted_ns();
    // Some may be gone by now.
    let found = (pids.iter()).filter_map(|pid| processes::describe(proc, *pid, booted_ns).ok());
    let numbered = found.map(|process| Process {
        process: match process.pid {
            pid if pid == init => Some(INIT),
            pid => execs.with_pid(pid),
        },
        ..process
    });
    numbered.take(Process::MAX_COUNT).collect()
}
