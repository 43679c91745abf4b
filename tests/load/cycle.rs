//! create, start, kill, delete, and a SIGKILL from the host somewhere on the way.

use std::os::unix::process::CommandExt;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::harness::Bundle;
use crate::lab::{self, Container, Lab};

/// Longest time from the start of a verb to the kill in the midst of it.
pub const DELAY_MAX_US: u64 = 300_000;

/// When the host process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Never,
    /// `create` itself, and with it what has no container yet.
    InCreate,
    AfterCreate,
    InStart,
    AfterStart,
    InKill,
    AfterKill,
    InDelete,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Never,
        Self::InCreate,
        Self::AfterCreate,
        Self::InStart,
        Self::AfterStart,
        Self::InKill,
        Self::AfterKill,
        Self::InDelete,
    ];

    /// Each as likely as the others.
    pub fn any(random: &mut Random) -> Self {
        Self::ALL[random.below(Self::ALL.len() as u64) as usize]
    }
}

/// Numbers that a seed repeats (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, cycle: u64) -> Self {
        Self(seed ^ cycle.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// One container from `create` to `delete`; what was not right.
pub fn run(lab: &Lab, delay_us: u64, step: Step) -> Result<(), String> {
    let container = lab.container(Bundle::shell("exec sleep 1000"));
    let delay = Duration::from_micros(delay_us);
    if step == Step::InCreate {
        create_and_kill(&container, delay);
    } else {
        let create = container.create();
        if create.code != 0 {
            return Err(format!("create: {create:?}"));
        }
        verbs(&container, delay, step)?;
    }
    // No error where there is nothing any more.
    let deleted = lab.call(&["delete", "--force", &container.id]);
    if deleted.code() != 0 {
        return Err(format!("delete --force: {deleted:?}"));
    }
    if lab.call(&["state", &container.id]).code() == 0 {
        return Err("it has a state after its deletion".to_owned());
    }
    if container.pid_file().exists() {
        lab::wait(container.pid());
    }
    Ok(())
}

/// `create`, killed with its process group after `delay`, whatever it does then.
fn create_and_kill(container: &Container, delay: Duration) {
    let mut command = container.create_command(&[]);
    let mut create = command.process_group(0).spawn().unwrap();
    let group = Pid::from_child(&create);
    thread::sleep(delay);
    // It may have ended.
    let _ = kill_process_group(group, Signal::KILL);
    create.wait().unwrap();
}

fn verbs(container: &Container, delay: Duration, step: Step) -> Result<(), String> {
    let pid = container.pid();
    let order = [
        (Step::AfterCreate, Step::InStart, &["start"][..]),
        (Step::AfterStart, Step::InKill, &["kill", "KILL"]),
        (Step::AfterKill, Step::InDelete, &["delete"]),
    ];
    for (before, within, words) in order {
        if step == before {
            kill(pid);
            return Ok(());
        }
        let mut words = words.to_vec();
        words.insert(1, &container.id);
        if step == within {
            thread::scope(|scope| {
                scope.spawn(|| {
                    // A moment in the midst of it is what is wanted: nothing to wait for.
                    thread::sleep(delay / 10);
                    kill(pid);
                });
                container.lab.call(&words);
            });
            return Ok(());
        }
        if words[0] == "delete" {
            ended(pid);
        }
        let call = container.lab.call(&words);
        if call.code() != 0 {
            return Err(format!("{}: {call:?}", words[0]));
        }
    }
    Ok(())
}

/// It may have ended.
fn kill(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
}

fn ended(pid: Pid) {
    assert!(lab::ends(pid), "process {pid} does not end");
}
