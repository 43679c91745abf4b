//! Names that the specification has and `oci-spec` does not know, put right
//! before the typed form is made.

use serde_json::Value;

use crate::capabilities;

/// Flags of `process.scheduler` as `oci-spec` spells them.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

const SETS: [&str; 5] = [
    "bounding",
    "effective",
    "inheritable",
    "permitted",
    "ambient",
];

/// Corrects `document`, which is config.json's part at the JSON path `at`. Whether
/// anything was changed.
///
/// A capability that no kernel of ours knows is left out with a warning, as the
/// specification asks (config.md, "Linux process").
pub fn correct(at: &str, document: &mut Value, warnings: &mut Vec<String>) -> bool {
    let process = match at {
        "" => document.get_mut("process"),
        "process" => Some(document),
        _ => None,
    };
    let Some(process) = process else {
        return false;
    };
    let flags = rename_flags(process);
    leave_capabilities_out(process, warnings) | flags
}

fn rename_flags(process: &mut Value) -> bool {
    let flags = process.pointer_mut("/scheduler/flags");
    let mut changed = false;
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        let known = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name);
        if let Some((_, theirs)) = known {
            *flag = Value::from(*theirs);
            changed = true;
        }
    }
    changed
}

fn leave_capabilities_out(process: &mut Value, warnings: &mut Vec<String>) -> bool {
    let mut changed = false;
    for set in SETS {
        let names = process.get_mut("capabilities").and_then(|c| c.get_mut(set));
        let Some(names) = names.and_then(Value::as_array_mut) else {
            continue;
        };
        let is_unknown = |name: &Value| name.is_string() && !capabilities::is_known(name);
        let unknown: Vec<_> = names.iter().filter(|name| is_unknown(name)).collect();
        let Some(first) = unknown.first().and_then(|name| name.as_str()) else {
            continue;
        };
        let shown: String = first.chars().take(40).collect();
        warnings.push(format!(
            "process.capabilities.{set}: {} not known and left out: {shown:?}",
            unknown.len()
        ));
        names.retain(|name| !is_unknown(name));
        changed = true;
    }
    changed
}
