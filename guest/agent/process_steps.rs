//! The part of the [steps](crate::steps) that is about a process alone: the
//! container's first one, or a further one.

use vmrun_protocol::plan::ProcessPlan;

use crate::steps::Step;

/// The steps of a further process, once it has joined the container. Its pipes are
/// in their places.
pub fn exec_steps(plan: &ProcessPlan) -> Vec<Step<'_>> {
    let mut steps = Vec::with_capacity(16);
    steps.extend(plan.terminal.map(Step::Terminal));
    steps.push(Step::WorkingFolder {
        path: &plan.cwd,
        create: false,
    });
    process_steps(plan, &mut steps);
    steps
}

/// Whether capabilities are set as late as the seccomp filters, which without
/// no_new_privs only a process with CAP_SYS_ADMIN may install.
pub fn seals_capabilities(process: &ProcessPlan) -> bool {
    !process.seccomp.is_empty() && !process.no_new_privileges
}

/// The steps of a process that is where it belongs, up to its program.
pub fn process_steps<'p>(process: &'p ProcessPlan, steps: &mut Vec<Step<'p>>) {
    steps.push(Step::Session);
    steps.push(match process.terminal {
        Some(_) => Step::TerminalStreams,
        None => Step::Pipes,
    });
    steps.push(Step::FindUser(&process.user));
    if !process.env.iter().any(|entry| entry.starts_with(b"HOME=")) {
        steps.push(Step::FindHome);
    }
    steps.push(Step::OwnStreams);
    steps.extend(process.personality.map(Step::Personality));
    // Real-time classes need capabilities that the user may not have.
    steps.extend(process.scheduler.map(Step::Scheduler));
    steps.extend(process.io_priority.map(Step::IoPriority));
    steps.extend(process.rlimits.iter().map(|limit| Step::Limit(*limit)));
    let capabilities = process.capabilities.unwrap_or_default();
    steps.push(Step::BoundingSet(capabilities.bounding));
    steps.push(Step::BecomeUser);
    if !seals_capabilities(process) {
        steps.push(Step::Capabilities(capabilities));
    }
    if process.no_new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmrun_protocol::plan::{SeccompFilter, WindowSize};

    fn at(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).expect("step is there")
    }

    #[test]
    fn a_further_process_changes_nothing_of_the_container() {
        let plan = ProcessPlan {
            terminal: Some(WindowSize::default()),
            personality: Some(8),
            ..ProcessPlan::default()
        };
        let steps = exec_steps(&plan);
        let order = [
            at(&steps, |s| matches!(s, Step::Terminal(_))),
            at(&steps, |s| {
                matches!(s, Step::WorkingFolder { create: false, .. })
            }),
            at(&steps, |s| matches!(s, Step::Session)),
            at(&steps, |s| matches!(s, Step::TerminalStreams)),
            at(&steps, |s| matches!(s, Step::Personality(8))),
            at(&steps, |s| matches!(s, Step::BoundingSet(0))),
            at(&steps, |s| matches!(s, Step::Capabilities(_))),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert!(!steps.contains(&Step::Console));
    }

    #[test]
    fn filters_without_no_new_privileges_keep_the_capabilities_for_last() {
        let mut plan = ProcessPlan {
            seccomp: vec![SeccompFilter {
                flags: 0,
                program: vec![6],
            }],
            ..ProcessPlan::default()
        };
        let sets = |plan: &ProcessPlan| {
            let steps = exec_steps(plan);
            steps.iter().any(|s| matches!(s, Step::Capabilities(_)))
        };
        assert!(!sets(&plan));
        plan.no_new_privileges = true;
        assert!(sets(&plan));
        plan.no_new_privileges = false;
        plan.seccomp.clear();
        assert!(sets(&plan));
    }
}
