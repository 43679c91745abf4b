//! `linux.timeOffsets`. The kernel takes offsets for a time namespace until the first
//! process is in it, which is one forked after unshare(2): so the agent makes the
//! namespace for its next child, and goes back to its own.
#![allow(unsafe_code)]

use std::fmt::Write;
use std::os::fd::AsFd;

use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe,
};
use vmrun_protocol::message::Failure;

use crate::failure::Named;
use crate::procfs::Procfs;
use crate::sys::Cloned;

/// Clock, seconds and nanoseconds, as in [`vmrun_protocol::plan::ContainerPlan`].
type Offset = (u32, i64, u32);

/// The process that `clone` makes is in a new time namespace with these offsets.
pub fn with_offsets(
    offsets: &[Offset],
    clone: impl FnOnce() -> Result<Cloned, Failure>,
) -> Result<Cloned, Failure> {
    let what = || "time namespace";
    // SAFETY: neither descriptors nor memory are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }.named(what)?;
    let own = getpid().as_raw_nonzero().get() as u32;
    let written = Procfs::mount().and_then(|proc| {
        let lines = lines(offsets);
        proc.write(own, "timens_offsets", lines.as_bytes())
    });
    let cloned = written.named(|| "timeOffsets").and_then(|()| clone());
    if let Ok(Cloned::Child) = cloned {
        return cloned;
    }
    // Of the two namespaces that it has, the one that it is in itself counts.
    let back = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|this| move_into_thread_name_spaces(this.as_fd(), ThreadNameSpaceType::TIME));
    let cloned = cloned?;
    back.named(what).map(|()| cloned)
}

/// The offsets as /proc/PID/timens_offsets takes them.
fn lines(offsets: &[Offset]) -> String {
    let mut lines = String::new();
    for (clock, seconds, nanoseconds) in offsets {
        let _ = writeln!(lines, "{clock} {seconds} {nanoseconds}");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_may_be_negative() {
        let offsets = [(1, -7, 5), (7, 86_400, 0)];
        assert_eq!(lines(&offsets), "1 -7 5\n7 86400 0\n");
    }
}
