//! `linux.timeOffsets` (config-linux.md, "Offset for Time Namespace").

use std::collections::HashMap;

use oci_spec::runtime::LinuxTimeOffset;
use vmrun_protocol::plan::namespace;

use crate::Error;

const NANOSECONDS_PER_SECOND: u32 = 1_000_000_000;

/// Clock id, seconds and nanoseconds of each entry, by clock.
pub fn resolve(
    offsets: &HashMap<String, LinuxTimeOffset>,
    namespaces: u64,
) -> Result<Vec<(u32, i64, u32)>, Error> {
    let mut resolved = Vec::new();
    for (clock, offset) in offsets {
        let shown: String = clock
            .chars()
            .take(32)
            .flat_map(char::escape_debug)
            .collect();
        let path = format!("linux.timeOffsets.{shown}");
        if namespaces & namespace::TIME == 0 {
            let problem = "needs an entry of type time in linux.namespaces";
            return Err(Error::property(path, problem));
        }
        let id = match clock.as_str() {
            "monotonic" => libc::CLOCK_MONOTONIC,
            "boottime" => libc::CLOCK_BOOTTIME,
            _ => {
                let problem = "must be monotonic or boottime: the other clocks are the machine's";
                return Err(Error::property(path, problem));
            }
        };
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= NANOSECONDS_PER_SECOND {
            let problem = "must be less than a second";
            return Err(Error::property(path + ".nanosecs", problem));
        }
        resolved.push((id as u32, offset.secs().unwrap_or(0), nanoseconds));
    }
    resolved.sort_unstable();
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(offsets: Value, namespaces: u64) -> Result<Vec<(u32, i64, u32)>, String> {
        let offsets = serde_json::from_value(offsets).unwrap();
        resolve(&offsets, namespaces).map_err(|e| e.to_string())
    }

    #[test]
    fn clocks() {
        let offsets = json!({"monotonic": {"secs": -3, "nanosecs": 5}, "boottime": {"secs": 7}});
        assert_eq!(
            resolved(offsets, namespace::TIME),
            Ok(vec![(1, -3, 5), (7, 7, 0)])
        );
        assert_eq!(resolved(json!({}), 0), Ok(vec![]));
    }

    #[test]
    fn refusals() {
        for (offsets, namespaces, message) in [
            (
                json!({"boottime": {"secs": 1}}),
                namespace::PID,
                "linux.timeOffsets.boottime: needs an entry of type time in linux.namespaces",
            ),
            (
                json!({"realtime": {"secs": 1}}),
                namespace::TIME,
                "linux.timeOffsets.realtime: must be monotonic or boottime: the other clocks are \
                 the machine's",
            ),
            (
                json!({"monotonic": {"nanosecs": 1_000_000_000}}),
                namespace::TIME,
                "linux.timeOffsets.monotonic.nanosecs: must be less than a second",
            ),
        ] {
            assert_eq!(resolved(offsets, namespaces), Err(message.to_owned()));
        }
    }
}
