//! `process.scheduler` and `process.ioPriority` (config.md, "Linux process").

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    Scheduler as SpecScheduler,
};
use vmrun_protocol::plan::Scheduler;

use crate::Error;

const NICE: std::ops::RangeInclusive<i32> = -20..=19;

/// Priorities of `SCHED_FIFO` and `SCHED_RR`.
const REAL_TIME_PRIORITY: std::ops::RangeInclusive<i32> = 1..=99;

/// Levels within an I/O class.
const IO_LEVEL: std::ops::RangeInclusive<i64> = 0..=7;

/// Bits below the class in ioprio_set(2)'s number.
const IO_CLASS_SHIFT: u16 = 13;

/// Resolves `process.scheduler`.
pub fn scheduler(asked: Option<&SpecScheduler>) -> Result<Option<Scheduler>, Error> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    let policy = policy(asked.policy())?;
    let is_real_time = matches!(policy as i32, libc::SCHED_FIFO | libc::SCHED_RR);
    let is_deadline = policy as i32 == libc::SCHED_DEADLINE;
    let mut scheduler = Scheduler {
        policy,
        flags: flags(asked)?,
        nice: ranged("nice", asked.nice().unwrap_or(0), NICE)?,
        ..Scheduler::default()
    };
    match asked.priority() {
        Some(priority) if is_real_time => {
            scheduler.priority = ranged("priority", *priority, REAL_TIME_PRIORITY)? as u32;
        }
        None if is_real_time => return Err(refused("priority", "must be 1 to 99")),
        None | Some(0) => {}
        Some(_) => return Err(refused("priority", "is only for SCHED_FIFO and SCHED_RR")),
    }
    let times = [
        ("runtime", asked.runtime(), &mut scheduler.runtime_ns),
        ("deadline", asked.deadline(), &mut scheduler.deadline_ns),
        ("period", asked.period(), &mut scheduler.period_ns),
    ];
    for (name, asked, to) in times {
        *to = asked.unwrap_or(0);
        if *to != 0 && !is_deadline {
            return Err(refused(name, "is only for SCHED_DEADLINE"));
        }
    }
    Ok(Some(scheduler))
}

fn policy(policy: &LinuxSchedulerPolicy) -> Result<u32, Error> {
    use LinuxSchedulerPolicy::*;
    Ok(match policy {
        SchedOther => libc::SCHED_OTHER,
        SchedFifo => libc::SCHED_FIFO,
        SchedRr => libc::SCHED_RR,
        SchedBatch => libc::SCHED_BATCH,
        SchedIdle => libc::SCHED_IDLE,
        SchedDeadline => libc::SCHED_DEADLINE,
        SchedIso => return Err(refused("policy", "SCHED_ISO is in no kernel")),
    } as u32)
}

fn flags(asked: &SpecScheduler) -> Result<u64, Error> {
    let flags = asked.flags().as_deref().unwrap_or_default();
    flags.iter().try_fold(0, |bits, flag| {
        use LinuxSchedulerFlag::*;
        Ok(bits
            | match flag {
                SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
                SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
                SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
                SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
                SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
                SchedFlagUtilClampMin | SchedFlagUtilClampMax => {
                    return Err(refused("flags", "the guest's kernel clamps no utilization"));
                }
            } as u64)
    })
}

fn ranged(name: &str, value: i32, range: std::ops::RangeInclusive<i32>) -> Result<i32, Error> {
    if range.contains(&value) {
        return Ok(value);
    }
    let problem = format!("must be {} to {}", range.start(), range.end());
    Err(refused(name, problem))
}

fn refused(name: &str, problem: impl Into<String>) -> Error {
    Error::property(format!("process.scheduler.{name}"), problem)
}

/// Resolves `process.ioPriority` to the number of ioprio_set(2).
pub fn io_priority(asked: Option<&LinuxIOPriority>) -> Result<Option<u16>, Error> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    if !IO_LEVEL.contains(&asked.priority()) {
        let path = "process.ioPriority.priority";
        return Err(Error::property(path, "must be 0 to 7"));
    }
    Ok(Some(class << IO_CLASS_SHIFT | asked.priority() as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;
    use oci_spec::runtime::Process;
    use serde_json::{Value, json};

    /// As it comes: through the names that are put right.
    fn resolved(property: &str, value: Value) -> Result<(Option<Scheduler>, Option<u16>), String> {
        let mut process = json!({"user": {}, "cwd": "/"});
        process[property] = value;
        let text = process.to_string();
        let process: Process = load::part(text.as_bytes(), "p", "process", &mut Vec::new())
            .map_err(|e| e.to_string())?;
        let scheduler = scheduler(process.scheduler().as_ref()).map_err(|e| e.to_string())?;
        let io = io_priority(process.io_priority().as_ref()).map_err(|e| e.to_string())?;
        Ok((scheduler, io))
    }

    #[test]
    fn policies() {
        let of = |value| resolved("scheduler", value).unwrap().0.unwrap();
        for (name, number) in [
            ("SCHED_OTHER", 0),
            ("SCHED_BATCH", 3),
            ("SCHED_IDLE", 5),
            ("SCHED_DEADLINE", 6),
        ] {
            assert_eq!(of(json!({"policy": name})).policy, number, "{name}");
        }
        assert_eq!(
            of(json!({"policy": "SCHED_RR", "priority": 99, "nice": -20})),
            Scheduler {
                policy: 2,
                priority: 99,
                nice: -20,
                ..Scheduler::default()
            }
        );
        assert_eq!(
            of(
                json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
                "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM",
                          "SCHED_FLAG_DL_OVERRUN"]})
            ),
            Scheduler {
                policy: 6,
                flags: 7,
                runtime_ns: 1,
                deadline_ns: 2,
                period_ns: 3,
                ..Scheduler::default()
            }
        );
    }

    #[test]
    fn io_priorities() {
        let of = |value| resolved("ioPriority", value).unwrap().1;
        assert_eq!(
            of(json!({"class": "IOPRIO_CLASS_RT", "priority": 7})),
            Some(1 << 13 | 7)
        );
        assert_eq!(
            of(json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0})),
            Some(3 << 13)
        );
    }

    #[test]
    fn refusals() {
        for (property, value, message) in [
            (
                "scheduler",
                json!({"policy": "SCHED_ISO"}),
                "process.scheduler.policy: SCHED_ISO is in no kernel",
            ),
            (
                "scheduler",
                json!({"policy": "SCHED_FIFO"}),
                "process.scheduler.priority: must be 1 to 99",
            ),
            (
                "scheduler",
                json!({"policy": "SCHED_FIFO", "priority": 100}),
                "process.scheduler.priority: must be 1 to 99",
            ),
            (
                "scheduler",
                json!({"policy": "SCHED_OTHER", "priority": 1}),
                "process.scheduler.priority: is only for SCHED_FIFO and SCHED_RR",
            ),
            (
                "scheduler",
                json!({"policy": "SCHED_OTHER", "nice": 20}),
                "process.scheduler.nice: must be -20 to 19",
            ),
            (
                "scheduler",
                json!({"policy": "SCHED_IDLE", "period": 1}),
                "process.scheduler.period: is only for SCHED_DEADLINE",
            ),
            (
                "scheduler",
                json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}),
                "process.scheduler.flags: the guest's kernel clamps no utilization",
            ),
            (
                "ioPriority",
                json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
                "process.ioPriority.priority: must be 0 to 7",
            ),
        ] {
            assert_eq!(resolved(property, value), Err(message.to_owned()));
        }
    }
}
