//! The part of the [steps](crate::steps) that is about a process alone: the
//! container's first one, or a further one.

use vmrun_protocol::plan::{Capabilities, ProcessPlan};

use crate::steps::Step;

/// Its bit in a capability set.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The steps of the container's first process once its root is there, up to the
/// program.
pub fn process_steps<'p>(plan: &'p ProcessPlan, steps: &mut Vec<Step<'p>>) {
    session(plan, steps);
    attributes(plan, steps);
}

/// The same of a further process once it has joined the container: those of the
/// helper, which nobody sees, and of the process itself. The latter is left with what
/// it cannot inherit, so that it never has more rights than its program (or those that
/// [filters need](seals_capabilities)). Its pipes are in their places.
pub fn exec_steps(plan: &ProcessPlan) -> (Vec<Step<'_>>, Vec<Step<'_>>) {
    let mut before = Vec::with_capacity(16);
    before.extend(plan.terminal.map(Step::Terminal));
    before.push(Step::WorkingFolder {
        path: &plan.cwd,
        create: false,
    });
    attributes(plan, &mut before);
    let mut itself = Vec::new();
    session(plan, &mut itself);
    // The two of them together must not be one too many.
    for step in &mut before {
        if let Step::Limit(limit) = *step
            && limit.resource == libc::RLIMIT_NPROC
        {
            *step = Step::RaiseLimit(limit);
            itself.push(Step::Limit(limit));
        }
    }
    (before, itself)
}

/// Whether capabilities are set at last as late as the seccomp filters, which without
/// no_new_privs only a process with CAP_SYS_ADMIN may install.
pub fn seals_capabilities(process: &ProcessPlan) -> bool {
    !process.seccomp.is_empty() && !process.no_new_privileges
}

fn session(plan: &ProcessPlan, steps: &mut Vec<Step<'_>>) {
    steps.push(Step::Session);
    if plan.terminal.is_some() {
        steps.push(Step::ControllingTerminal);
    }
}

fn attributes<'p>(plan: &'p ProcessPlan, steps: &mut Vec<Step<'p>>) {
    steps.push(match plan.terminal {
        Some(_) => Step::TerminalStreams,
        None => Step::Pipes,
    });
    steps.push(Step::FindUser(&plan.user));
    if !plan.env.iter().any(|entry| entry.starts_with(b"HOME=")) {
        steps.push(Step::FindHome);
    }
    steps.push(Step::OwnStreams);
    steps.extend(plan.personality.map(Step::Personality));
    // Real-time classes need capabilities that the user may not have.
    steps.extend(plan.scheduler.map(Step::Scheduler));
    steps.extend(plan.io_priority.map(Step::IoPriority));
    steps.extend(plan.rlimits.iter().map(|limit| Step::Limit(*limit)));
    let capabilities = plan.capabilities.unwrap_or_default();
    steps.push(Step::BoundingSet(capabilities.bounding));
    steps.push(Step::BecomeUser);
    steps.push(Step::Capabilities(if seals_capabilities(plan) {
        Capabilities {
            effective: capabilities.effective | CAP_SYS_ADMIN,
            permitted: capabilities.permitted | CAP_SYS_ADMIN,
            ambient: 0,
            ..capabilities
        }
    } else {
        capabilities
    }));
    if plan.no_new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmrun_protocol::plan::{Rlimit, SeccompFilter, WindowSize};

    fn at(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).expect("step is there")
    }

    #[test]
    fn a_further_process_changes_nothing_of_the_container() {
        let limit = |resource| Rlimit {
            resource,
            soft: 1,
            hard: 2,
        };
        let nproc = limit(libc::RLIMIT_NPROC);
        let plan = ProcessPlan {
            terminal: Some(WindowSize::default()),
            personality: Some(8),
            no_new_privileges: true,
            rlimits: [libc::RLIMIT_NPROC, libc::RLIMIT_NOFILE].map(limit).into(),
            ..ProcessPlan::default()
        };
        let (steps, itself) = exec_steps(&plan);
        let order = [
            at(&steps, |s| matches!(s, Step::Terminal(_))),
            at(&steps, |s| {
                matches!(s, Step::WorkingFolder { create: false, .. })
            }),
            at(&steps, |s| matches!(s, Step::TerminalStreams)),
            at(&steps, |s| matches!(s, Step::OwnStreams)),
            at(&steps, |s| matches!(s, Step::Personality(8))),
            at(&steps, |s| matches!(s, Step::RaiseLimit(l) if *l == nproc)),
            at(&steps, |s| matches!(s, Step::Limit(l) if *l != nproc)),
            at(&steps, |s| matches!(s, Step::BoundingSet(0))),
            at(&steps, |s| matches!(s, Step::Capabilities(_))),
            at(&steps, |s| matches!(s, Step::NoNewPrivileges)),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert!(!steps.contains(&Step::Console));
        let last = [Step::Session, Step::ControllingTerminal, Step::Limit(nproc)];
        assert_eq!(itself, last);
    }

    #[test]
    fn without_no_new_privileges_filters_need_one_capability_more() {
        let mut plan = ProcessPlan::default();
        let sets = |plan: &ProcessPlan| {
            let sets = Some(Capabilities {
                permitted: 1,
                ambient: 1,
                ..Capabilities::default()
            });
            let plan = ProcessPlan {
                capabilities: sets,
                ..plan.clone()
            };
            let (steps, _) = exec_steps(&plan);
            steps.iter().find_map(|step| match step {
                Step::Capabilities(sets) => Some((sets.permitted, sets.effective, sets.ambient)),
                _ => None,
            })
        };
        assert_eq!(sets(&plan), Some((1, 0, 1)));
        plan.seccomp = vec![SeccompFilter {
            flags: 0,
            program: vec![6],
        }];
        assert_eq!(sets(&plan), Some((1 | 1 << 21, 1 << 21, 0)));
        plan.no_new_privileges = true;
        assert_eq!(sets(&plan), Some((1, 0, 1)));
    }
}
