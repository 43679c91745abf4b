//! `linux.seccomp` (config-linux.md, "Seccomp"): from rules to one filter program.
//!
//! Of all rules that fit a system call the strictest action counts, in the order of
//! seccomp(2): kill the process, kill the thread, trap, errno, trace, log, allow.
//! Where two are equally strict (two errnos), the one listed first does. If no rule
//! fits, the default action counts. libseccomp, which runc takes, lets a rule
//! without conditions stand for all others of its call; profiles in use have no
//! rules that overlap with different actions.
//!
//! Further as runc has it: names that x86-64 does not have are ignored; conditions
//! of one rule that name the same argument twice become rules of their own; calls
//! newer than any that the profile names get ENOSYS rather than a default errno,
//! trap or kill, so that programs fall back to older calls.

mod program;
mod syscalls;

#[cfg(test)]
mod interpreter;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};
use vmrun_protocol::plan::SeccompFilter;

use crate::{Error, text};

/// Most entries of `syscalls`, and most names and conditions of one.
const MAX_ENTRIES: usize = 4096;
const MAX_NAMES: usize = 1024;
const MAX_CONDITIONS: usize = 32;

/// Most rules of all system calls: many times what a filter can hold.
const MAX_RULES: usize = 65_536;

const ENOSYS: u32 = libc::ENOSYS as u32;
const EPERM: u32 = libc::EPERM as u32;

/// What a filter returns: `SECCOMP_RET_*` with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Action(u32);

impl Action {
    const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);

    /// Less is stricter, as the kernel compares them.
    fn strictness(self) -> i32 {
        (self.0 & libc::SECCOMP_RET_ACTION_FULL) as i32
    }

    fn is(self, action: u32) -> bool {
        self.0 & libc::SECCOMP_RET_ACTION_FULL == action
    }
}

/// A rule for one system call: all of its conditions, and what follows.
#[derive(Debug, Clone)]
struct Rule {
    conditions: Vec<SeccompCondition>,
    action: Action,
}

/// What is done about the calls of the numbers from `first` on, up to the next one.
#[derive(Debug, Clone)]
struct Range {
    first: u32,
    /// By strictness; only the last one has no conditions.
    rules: Vec<Rule>,
}

/// Compiles the profile. There is one filter, or none where everything is allowed.
pub fn resolve(profile: Option<&LinuxSeccomp>) -> Result<Vec<SeccompFilter>, Error> {
    let Some(profile) = profile else {
        return Ok(Vec::new());
    };
    let default = default_action(profile)?;
    let syscalls = profile.syscalls().as_deref().unwrap_or_default();
    let rules = rules(syscalls)?;
    if default == Action::ALLOW && rules.is_empty() {
        return Ok(Vec::new());
    }
    let program = program::compile(&ranges(rules, default)).map_err(|length| {
        let max = SeccompFilter::MAX_LEN;
        let problem = format!("takes a filter of {length} instructions, more than {max}");
        Error::property("linux.seccomp.syscalls", problem)
    })?;
    Ok(vec![SeccompFilter {
        flags: flags(profile),
        program,
    }])
}

fn default_action(profile: &LinuxSeccomp) -> Result<Action, Error> {
    let errno = profile.default_errno_ret();
    action(
        ("linux.seccomp.defaultAction", profile.default_action()),
        ("linux.seccomp.defaultErrnoRet", errno),
    )
}

/// An action and its data, with their JSON paths.
fn action(
    (path, action): (&str, LinuxSeccompAction),
    (errno_path, errno): (&str, Option<u32>),
) -> Result<Action, Error> {
    use LinuxSeccompAction::*;
    let base = match action {
        ScmpActKill | ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        ScmpActTrap => libc::SECCOMP_RET_TRAP,
        ScmpActErrno => libc::SECCOMP_RET_ERRNO,
        ScmpActTrace => libc::SECCOMP_RET_TRACE,
        ScmpActLog => libc::SECCOMP_RET_LOG,
        ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        ScmpActNotify => {
            let problem = "SCMP_ACT_NOTIFY is not supported: no program of the host can look \
                           into the guest";
            return Err(Error::property(path, problem));
        }
    };
    let has_errno = matches!(action, ScmpActErrno | ScmpActTrace);
    match errno {
        None if has_errno => Ok(Action(base | EPERM)),
        None => Ok(Action(base)),
        Some(errno) if has_errno && errno <= libc::SECCOMP_RET_DATA => Ok(Action(base | errno)),
        Some(_) if has_errno => {
            let problem = format!("must be at most {}", libc::SECCOMP_RET_DATA);
            Err(Error::property(errno_path, problem))
        }
        // As every property, one that is not set may come as 0.
        Some(0) => Ok(Action(base)),
        Some(_) => {
            let problem = "is only for SCMP_ACT_ERRNO and SCMP_ACT_TRACE";
            Err(Error::property(errno_path, problem))
        }
    }
}

/// `SECCOMP_FILTER_FLAG_*`. WAIT_KILLABLE_RECV only says how to wait for a listener,
/// of which there is none; the kernel refuses it without one.
fn flags(profile: &LinuxSeccomp) -> u32 {
    let flags = profile.flags().as_deref().unwrap_or_default();
    flags.iter().fold(0, |bits, flag| {
        use LinuxSeccompFilterFlag::*;
        bits | match flag {
            SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC as u32,
            SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
            SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
            SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

/// The rules of every number that is named, in the order of the profile.
fn rules(syscalls: &[LinuxSyscall]) -> Result<BTreeMap<u32, Vec<Rule>>, Error> {
    text::at_most("linux.seccomp.syscalls", syscalls.len(), MAX_ENTRIES)?;
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut rule_count = 0;
    for (i, entry) in syscalls.iter().enumerate() {
        let path = format!("linux.seccomp.syscalls[{i}]");
        text::at_most(&format!("{path}.names"), entry.names().len(), MAX_NAMES)?;
        let action = action(
            (&format!("{path}.action"), entry.action()),
            (&format!("{path}.errnoRet"), entry.errno_ret()),
        )?;
        let alternatives = alternatives(&path, entry.args().as_deref().unwrap_or_default())?;
        for name in entry.names() {
            let Some(number) = syscalls::number(name) else {
                log::debug!("{path}.names: {name:?} is no system call of x86-64, ignored");
                continue;
            };
            rule_count += alternatives.len();
            text::at_most("linux.seccomp.syscalls", rule_count, MAX_RULES)?;
            let conditions = alternatives.iter().cloned();
            let rule = |conditions| Rule { conditions, action };
            rules
                .entry(number)
                .or_default()
                .extend(conditions.map(rule));
        }
    }
    Ok(rules)
}

/// Lists of conditions, any of which is to be fulfilled.
fn alternatives(path: &str, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<SeccompCondition>>, Error> {
    text::at_most(&format!("{path}.args"), args.len(), MAX_CONDITIONS)?;
    let numbered = args.iter().enumerate();
    let conditions = numbered
        .map(|(i, arg)| condition(&format!("{path}.args[{i}]"), arg))
        .collect::<Result<Vec<_>, _>>()?;
    let is_repeated = |i: usize| args[..i].iter().any(|a| a.index() == args[i].index());
    Ok(if (0..args.len()).any(is_repeated) {
        conditions.into_iter().map(|c| vec![c]).collect()
    } else {
        vec![conditions]
    })
}

fn condition(path: &str, arg: &LinuxSeccompArg) -> Result<SeccompCondition, Error> {
    use LinuxSeccompOperator::*;
    let value_two = arg.value_two().unwrap_or(0);
    let (op, value) = match arg.op() {
        ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
        ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
        ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
        ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
        ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
        ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
        // `value` is the mask.
        ScmpCmpMaskedEq => (SeccompCmpOp::MaskedEq(arg.value()), value_two),
    };
    let index = u8::try_from(arg.index()).ok().filter(|&index| index < 6);
    let condition =
        index.and_then(|i| SeccompCondition::new(i, SeccompCmpArgLen::Qword, op, value).ok());
    condition.ok_or_else(|| Error::property(format!("{path}.index"), "must be 0 to 5"))
}

/// All numbers, in ranges that are treated alike.
fn ranges(rules: BTreeMap<u32, Vec<Rule>>, default: Action) -> Vec<Range> {
    let unconditional = |action| Rule {
        conditions: Vec::new(),
        action,
    };
    let newest = rules.keys().next_back().copied();
    let mut ranges: Vec<Range> = Vec::new();
    let mut next = 0;
    for (number, mut listed) in rules {
        if number > next {
            push(&mut ranges, next, vec![unconditional(default)]);
        }
        next = number + 1;
        listed.push(unconditional(default));
        // The default comes behind all of its number, however strict it is.
        let last = listed.len() - 1;
        listed[..last].sort_by_key(|rule| rule.action.strictness());
        let end = listed.iter().position(|rule| rule.conditions.is_empty());
        listed.truncate(end.map_or(listed.len(), |end| end + 1));
        push(&mut ranges, number, listed);
    }
    let allows = default == Action::ALLOW
        || default.is(libc::SECCOMP_RET_LOG)
        || default.is(libc::SECCOMP_RET_TRACE);
    let rest = match newest {
        Some(_) if !allows => Action(libc::SECCOMP_RET_ERRNO | ENOSYS),
        _ => default,
    };
    push(&mut ranges, next, vec![unconditional(rest)]);
    ranges
}

fn push(ranges: &mut Vec<Range>, first: u32, rules: Vec<Rule>) {
    let alike = |range: &Range| match (&range.rules[..], &rules[..]) {
        ([a], [b]) => a.action == b.action && a.conditions.is_empty() && b.conditions.is_empty(),
        _ => false,
    };
    if !ranges.last().is_some_and(alike) {
        ranges.push(Range { first, rules });
    }
}
