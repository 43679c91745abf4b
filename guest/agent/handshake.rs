//! What the agent and the container's first process say to each other while the
//! container is made: one message each way per stage, over a socket pair that
//! execve closes.
//!
//! A process that was prepared: `Created`, and the agent sends the plan. Then, and
//! for others from the start: `Created` or `Failed`. Agent: go. Then end of file when the program
//! runs, or `Failed`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::{Errno, Result, retry_on_intr, write};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair,
};
use vmrun_protocol::frame;
use vmrun_protocol::message::Report;
use vmrun_protocol::plan::ContainerPlan;

/// Longest message: a failure's text and numbers.
const MAX_BYTES: usize = 8 << 10;
/// Longest message of [`send_plan`]: what a socket buffer of
/// the default size has room for. Most are a few KiB.
pub const PLAN_MAX_BYTES: usize = 64 << 10;

/// Both ends.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The process tells how it went; `handles` go along (the terminal).
pub fn tell(socket: BorrowedFd<'_>, report: &Report, handles: &[BorrowedFd<'_>]) -> Result<()> {
    let mut message = Vec::new();
    frame::write(&mut message, report, MAX_BYTES).map_err(|_| Errno::MSGSIZE)?;
    if handles.is_empty() {
        // Every seccomp profile lets a program write.
        return retry_on_intr(|| write(socket, &message)).map(drop);
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(handles));
    let parts = [IoSlice::new(&message)];
    retry_on_intr(|| sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)).map(drop)
}

/// A process that joins a container tells which other one goes on for it: its
/// number in the agent's pid namespace.
pub fn tell_pid(socket: BorrowedFd<'_>, pid: u32) -> Result<()> {
    retry_on_intr(|| write(socket, &pid.to_le_bytes())).map(drop)
}

/// What [`hear`] and [`hear_now`] may hear.
#[derive(Debug)]
pub enum Heard {
    /// A report, with the handles that came along.
    Report(Report, Vec<OwnedFd>),
    /// What [`tell_pid`] has told.
    Pid(u32),
    /// Nobody has the other end any more.
    Gone,
}

/// The agent hears how it went. None when the process has closed its end.
pub fn hear(socket: BorrowedFd<'_>) -> Result<Option<(Report, Vec<OwnedFd>)>> {
    match receive(socket, RecvFlags::empty())? {
        Heard::Report(report, handles) => Ok(Some((report, handles))),
        Heard::Pid(_) => Err(Errno::BADMSG),
        Heard::Gone => Ok(None),
    }
}

/// The same without waiting: `EAGAIN` where there is nothing to hear now.
pub fn hear_now(socket: BorrowedFd<'_>) -> Result<Heard> {
    receive(socket, RecvFlags::DONTWAIT)
}

fn receive(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<Heard> {
    let mut message = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut message)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| recvmsg(socket, &mut parts, &mut control, flags))?;
    let mut handles = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            handles.extend(fds);
        }
    }
    let message = message.get(..received.bytes).unwrap_or_default();
    if message.is_empty() {
        return Ok(Heard::Gone);
    }
    // A frame is longer than a number: its length alone is as long.
    if let Ok(pid) = message.try_into() {
        return Ok(Heard::Pid(u32::from_le_bytes(pid)));
    }
    let report = frame::read(&mut &*message, MAX_BYTES).map_err(|_| Errno::BADMSG)?;
    Ok(Heard::Report(report, handles))
}

/// A plan as [`send_plan`] takes it. None where that is too long.
pub fn plan_message(plan: &ContainerPlan) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    frame::write(&mut message, plan, PLAN_MAX_BYTES).ok()?;
    (message.len() <= PLAN_MAX_BYTES).then_some(message)
}

/// The agent sends a prepared process the plan.
pub fn send_plan(socket: BorrowedFd<'_>, message: &[u8]) -> Result<()> {
    send(socket, message, SendFlags::NOSIGNAL).map(drop)
}

/// The process waits for [`send_plan`], with a buffer of [`PLAN_MAX_BYTES`]. None
/// when the agent is gone.
pub fn await_plan(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<ContainerPlan>> {
    let (len, _) = retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::empty()))?;
    if len == 0 {
        return Ok(None);
    }
    let message = buffer.get(..len).unwrap_or_default();
    let plan = frame::read(&mut &*message, PLAN_MAX_BYTES).map_err(|_| Errno::BADMSG)?;
    Ok(Some(plan))
}

/// The agent lets the process go on.
pub fn go(socket: BorrowedFd<'_>) -> Result<()> {
    send(socket, b"g", SendFlags::NOSIGNAL).map(drop)
}

/// The process waits for [`go`]. False when the agent is gone.
pub fn await_go(socket: BorrowedFd<'_>) -> Result<bool> {
    let mut byte = [0];
    let received = retry_on_intr(|| recv(socket, &mut byte, RecvFlags::empty()))?;
    Ok(received.0 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::setup;
    use std::os::fd::AsFd;

    #[test]
    fn a_failure_of_full_length_comes_through() {
        let (agent, process) = pair().unwrap();
        let report = Report::Failed(setup("x".repeat(9000), Errno::NOENT));
        tell(process.as_fd(), &report, &[]).unwrap();
        let (heard, handles) = hear(agent.as_fd()).unwrap().unwrap();
        assert_eq!((heard, handles.len()), (report, 0));
    }

    #[test]
    fn numbers_are_told_from_reports() {
        let (agent, process) = pair().unwrap();
        assert_eq!(hear_now(agent.as_fd()).unwrap_err(), Errno::AGAIN);
        tell_pid(process.as_fd(), 0x0100_0001).unwrap();
        tell(process.as_fd(), &Report::Created, &[]).unwrap();
        drop(process);
        let heard = || hear_now(agent.as_fd()).unwrap();
        assert!(matches!(heard(), Heard::Pid(0x0100_0001)));
        assert!(matches!(heard(), Heard::Report(Report::Created, _)));
        assert!(matches!(heard(), Heard::Gone));
    }

    #[test]
    fn handles_come_along_and_the_end_is_seen() {
        let (agent, process) = pair().unwrap();
        let handles = [process.as_fd(), agent.as_fd()];
        tell(process.as_fd(), &Report::Created, &handles).unwrap();
        let (heard, handles) = hear(agent.as_fd()).unwrap().unwrap();
        assert_eq!((heard, handles.len()), (Report::Created, 2));
        go(agent.as_fd()).unwrap();
        assert!(await_go(process.as_fd()).unwrap());
        drop((handles, process));
        assert!(hear(agent.as_fd()).unwrap().is_none());
    }
}
