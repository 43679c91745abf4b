//! What the agent watches of the container's cgroup: whether its processes stand when
//! they are to, and whether the kernel has killed any for lack of memory.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use vmrun_protocol::message::{Answer, Failure, Report};

use crate::cgroup::Cgroup;
use crate::cgroup_events::{Frozen, OomKills};
use crate::failure::{Named, setup, state};

/// What is known of the cgroup, and awaited.
#[derive(Default)]
pub struct Watch {
    /// The host wants its processes to stand.
    paused: bool,
    /// They do not stand yet; tag of the question.
    pausing: Option<(u32, Frozen)>,
    oom: Option<OomKills>,
    /// Kills in the whole machine that have been told.
    machine_kills: u64,
}

impl Watch {
    /// Begins, or goes on where memory has a limit only now.
    pub fn memory(&mut self, cgroup: &Cgroup) -> Result<(), Failure> {
        if self.oom.is_none() {
            self.oom = OomKills::watch(cgroup.as_fd()).named(|| "memory.events")?;
        }
        Ok(())
    }

    /// Whether the container stands, or is about to.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Descriptors to poll, in the order in which [`Self::handle`] takes what
    /// happened on them.
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let oom = self.oom.iter().map(|kills| kills.as_fd());
        let pausing = self.pausing.iter().map(|(_, frozen)| frozen.as_fd());
        oom.chain(pausing).map(|file| (file, PollFlags::PRI))
    }

    /// Acts on what happened to the descriptors of [`Self::interests`].
    pub fn handle(&mut self, events: &[PollFlags], reports: &mut Vec<Report>) {
        if events.iter().any(|events| !events.is_empty()) {
            self.look_for_kills(reports);
            self.look_for_pause(reports);
        }
    }

    /// Tells of processes that have been killed since the last time.
    pub fn look_for_kills(&mut self, reports: &mut Vec<Report>) {
        if self.oom.as_mut().is_some_and(OomKills::have_grown) {
            reports.push(Report::OutOfMemory);
        }
    }

    /// The same of a container whose memory has no limit: that of the machine is all
    /// there is then. `kills` are those in the machine since its start.
    pub fn look_for_machine_kills(
        &mut self,
        kills: impl FnOnce() -> u64,
        reports: &mut Vec<Report>,
    ) {
        if self.oom.is_none() {
            let kills = kills();
            if std::mem::replace(&mut self.machine_kills, kills) < kills {
                reports.push(Report::OutOfMemory);
            }
        }
    }

    /// Forgets the container that is gone.
    pub fn reset(&mut self) {
        *self = Self {
            machine_kills: self.machine_kills,
            ..Self::default()
        };
    }

    fn look_for_pause(&mut self, reports: &mut Vec<Report>) {
        let answer = match &self.pausing {
            None => return,
            Some((_, frozen)) => match frozen.is() {
                Ok(false) => return,
                Ok(true) => Ok(Answer::Done),
                Err(errno) => Err(setup("cgroup.events", errno)),
            },
        };
        self.answer(answer, reports);
    }

    /// Stops all processes. The answer to `tag` comes once they stand.
    pub fn pause(&mut self, tag: u32, cgroup: &Cgroup, reports: &mut Vec<Report>) {
        let begun = if self.paused {
            Err(state("pause: the container is paused"))
        } else {
            let frozen = Frozen::watch(cgroup.as_fd()).named(|| "cgroup.events");
            let write = |()| cgroup.freeze(true).named(|| "cgroup.freeze");
            frozen.and_then(|frozen| write(()).map(|()| frozen))
        };
        match begun {
            Ok(frozen) => {
                self.paused = true;
                self.pausing = Some((tag, frozen));
                self.look_for_pause(reports);
            }
            Err(failure) => reports.push(Report::Answer {
                tag,
                answer: Err(failure),
            }),
        }
    }

    /// Lets all processes go on.
    pub fn resume(&mut self, cgroup: &Cgroup, reports: &mut Vec<Report>) -> Result<(), Failure> {
        if !self.paused {
            return Err(state("resume: the container is not paused"));
        }
        cgroup.freeze(false).named(|| "cgroup.freeze")?;
        self.answer(Err(state("pause: resumed before all stood")), reports);
        self.paused = false;
        Ok(())
    }

    /// The container has ended: nobody stands any more.
    pub fn end_pause(&mut self, reports: &mut Vec<Report>) {
        self.answer(Err(setup("pause", Errno::SRCH)), reports);
        self.paused = false;
    }

    fn answer(&mut self, answer: Result<Answer, Failure>, reports: &mut Vec<Report>) {
        if let Some((tag, _)) = self.pausing.take() {
            reports.push(Report::Answer { tag, answer });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_in_the_machine_is_told_once_whatever_containers_come_and_go() {
        let mut watch = Watch::default();
        let told = |watch: &mut Watch, kills| {
            let mut reports = Vec::new();
            watch.look_for_machine_kills(|| kills, &mut reports);
            reports == [Report::OutOfMemory]
        };
        assert!(!told(&mut watch, 0));
        assert!(told(&mut watch, 2));
        assert!(!told(&mut watch, 2));
        watch.reset();
        assert!(!told(&mut watch, 2));
        assert!(told(&mut watch, 3));
    }
}
