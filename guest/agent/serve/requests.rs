//! What the agent does at each request.

use vmrun_protocol::message::{Answer, Failure, INIT, ProcessId, Question, Report, Request};
use vmrun_protocol::plan::{ContainerPlan, ProcessPlan};

use super::{Agent, ServeError, Stage};
use crate::container::Container;
use crate::failure::{Named, state};
use crate::procfs::Procfs;
use crate::{cgroup, questions};

impl Agent {
    pub(super) fn answer(&mut self, request: Request) -> Result<(), ServeError> {
        match request {
            Request::Create(plan) => {
                let report = match self.create(&plan) {
                    Ok(()) => Report::Created,
                    Err(failure) => Report::Failed(failure),
                };
                self.report(&report)
            }
            Request::Start => match &mut self.container {
                Some((_, stage @ Stage::Created)) => {
                    *stage = Stage::StartWanted;
                    Ok(())
                }
                _ => self.report(&Report::Failed(state("start: no created container"))),
            },
            Request::Signal { process, signal } => {
                self.signal(process, signal);
                Ok(())
            }
            Request::ResizeTerminal { process, size } => {
                match &self.container {
                    Some((container, _)) if process == INIT => container.resize(size),
                    _ => self.execs.resize(process, size),
                }
                Ok(())
            }
            Request::Exec { process, plan } => match self.exec(process, &plan) {
                Ok(()) => Ok(()),
                Err(failure) => self.report(&Report::ExecFailed { process, failure }),
            },
            Request::SignalAll { signal } => {
                self.signal_all(signal);
                Ok(())
            }
            Request::Ask { tag, question } => self.ask(tag, question),
            // Handled by the loop.
            Request::PowerOff => Ok(()),
        }
    }

    fn create(&mut self, plan: &ContainerPlan) -> Result<(), Failure> {
        if self.container.is_some() {
            return Err(state("create: the container exists"));
        }
        let created = Container::create(plan, self.guest, self.prepared.take());
        // Even one that failed may have changed it, and one without a network
        // namespace of its own is in it.
        self.guest.network_unused = false;
        let (container, ends) = match created {
            Ok(created) => created,
            Err(failure) => {
                self.streams.close(INIT);
                return Err(failure);
            }
        };
        if let Some(cgroup) = container.cgroup()
            && cgroup::controls_memory(plan)
            && let Err(failure) = self.watch.memory(cgroup)
        {
            container.discard();
            return Err(failure);
        }
        for (stream, local) in ends {
            self.streams.expect(INIT, stream, local);
        }
        self.has_hooks = !plan.start_container_hooks.is_empty();
        self.container = Some((container, Stage::Created));
        Ok(())
    }

    /// Begins to set up a further process.
    fn exec(&mut self, process: ProcessId, plan: &ProcessPlan) -> Result<(), Failure> {
        self.execs.check(process)?;
        let container = match &self.container {
            Some((_, Stage::Running)) if self.watch.is_paused() => {
                return Err(state("exec: the container is paused"));
            }
            Some((container, Stage::Running)) => container,
            _ => return Err(state("exec: no running container")),
        };
        let place = container.place(procfs(&mut self.proc)?)?;
        let begun = self.execs.begin(process, plan, &place, &mut self.streams);
        begun.inspect_err(|_| self.streams.close(process))
    }

    fn signal(&mut self, process: ProcessId, signal: u8) {
        match &self.container {
            Some((_, Stage::Ended(..))) if process == INIT => {}
            Some((container, _)) if process == INIT => container.signal(signal),
            _ => self.execs.signal(process, signal),
        }
    }

    fn signal_all(&mut self, signal: u8) {
        let Some((container, stage)) = &self.container else {
            return;
        };
        if !container.signal_group(signal, self.watch.is_paused())
            && !matches!(stage, Stage::Ended(..))
        {
            container.signal(signal);
        }
        // Those not in the group yet; one that is is not the worse for it.
        if i32::from(signal) == libc::SIGKILL {
            self.execs.kill_all();
        }
    }

    fn ask(&mut self, tag: u32, question: Question) -> Result<(), ServeError> {
        let mut reports = Vec::new();
        let answer = self.question(tag, question, &mut reports);
        if let Some(answer) = answer.transpose() {
            reports.push(Report::Answer { tag, answer });
        }
        self.report_all(reports)
    }

    /// The answer; none where it comes later, or is in `reports`.
    fn question(
        &mut self,
        tag: u32,
        question: Question,
        reports: &mut Vec<Report>,
    ) -> Result<Option<Answer>, Failure> {
        let (container, stage) = match &self.container {
            Some((container, stage)) if !matches!(stage, Stage::Ended(..)) => (container, stage),
            _ => return Err(state("no container")),
        };
        let no_cgroup = || state("the container has no cgroup");
        let cgroup = container.cgroup().ok_or_else(no_cgroup)?;
        match question {
            // One that is being set up would hold the agent up.
            Question::Pause if !matches!(stage, Stage::Running) => {
                Err(state("pause: no running container"))
            }
            Question::Pause => {
                self.watch.pause(tag, cgroup, reports);
                Ok(None)
            }
            Question::Resume => {
                self.watch.resume(cgroup, reports)?;
                Ok(Some(Answer::Done))
            }
            Question::Update(writes) => {
                questions::update(cgroup, &mut self.watch, &writes).map(Some)
            }
            Question::Processes => {
                let proc = procfs(&mut self.proc)?;
                let processes = questions::processes(cgroup, container.pid, &self.execs, proc);
                Ok(Some(Answer::Processes(processes)))
            }
            Question::Statistics => Ok(Some(Answer::Statistics(cgroup.statistics()))),
        }
    }
}

/// The procfs of the agent.
pub(super) fn procfs(proc: &mut Option<Procfs>) -> Result<&Procfs, Failure> {
    let made = match proc.take() {
        Some(proc) => proc,
        None => Procfs::mount().named(|| "mount proc")?,
    };
    Ok(proc.insert(made))
}
