//! What a process has beside its credentials: personality, scheduler, priority of its
//! input and output, and at last seccomp filters.
#![allow(unsafe_code)]

use std::mem::size_of;

use rustix::io::{Errno, Result};
use vmrun_protocol::plan::{Scheduler, SeccompFilter};

use crate::sys::check;

/// personality(2).
pub fn set_personality(persona: u32) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::personality(persona.into()) }.into())?;
    Ok(())
}

/// `struct sched_attr` of linux/sched/types.h, in its first version.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// sched_setattr(2) for this process.
pub fn set_scheduler(scheduler: &Scheduler) -> Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime_ns: scheduler.runtime_ns,
        deadline_ns: scheduler.deadline_ns,
        period_ns: scheduler.period_ns,
    };
    // SAFETY: `attr` has the size that it says, and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })?;
    Ok(())
}

/// ioprio_set(2) for this process: class in the upper 3 of 16 bits.
pub fn set_io_priority(priority: u16) -> Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    let value = i32::from(priority);
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// Flags that make no descriptor: a listener's would be lost.
const SECCOMP_FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_TSYNC
    | libc::SECCOMP_FILTER_FLAG_LOG
    | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;

/// seccomp(2): from now on `filter` is asked, too. Needs no_new_privs or
/// CAP_SYS_ADMIN.
pub fn install_filter(filter: &SeccompFilter) -> Result<()> {
    let len = filter.program.len();
    let unknown = libc::c_ulong::from(filter.flags) & !SECCOMP_FLAGS;
    if len == 0 || len > SeccompFilter::MAX_LEN || unknown != 0 {
        return Err(Errno::INVAL);
    }
    let program = libc::sock_fprog {
        len: len as u16,
        // The kernel only reads it. A `sock_filter` is one number, on a machine
        // with the least byte first.
        filter: filter.program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` points to as many `sock_filter` as it says, of 8 bytes each,
    // and lives through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            filter.flags,
            &raw const program,
        )
    })?;
    Ok(())
}
