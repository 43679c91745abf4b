//! `linux.uidMappings` and `linux.gidMappings` (config-linux.md, "User namespace
//! mappings"). What they call the host's ids are those of the machine, and of files
//! in its shared folders.

use oci_spec::runtime::{Linux, LinuxIdMapping};
use vmrun_protocol::plan::{IdMapping, namespace};

use crate::Error;
use crate::text;

/// Both lists. A user namespace needs them, and they need one.
pub fn resolve(linux: &Linux, namespaces: u64) -> Result<(Vec<IdMapping>, Vec<IdMapping>), Error> {
    let has_namespace = namespaces & namespace::USER != 0;
    let list = |path: &str, asked: &Option<Vec<LinuxIdMapping>>| {
        let asked = asked.as_deref().unwrap_or_default();
        match (has_namespace, asked.is_empty()) {
            (false, false) => {
                let problem = "needs an entry of type user in linux.namespaces";
                Err(Error::property(path, problem))
            }
            (true, true) => {
                let problem = "must not be empty with a user namespace";
                Err(Error::property(path, problem))
            }
            _ => mappings(path, asked),
        }
    };
    Ok((
        list("linux.uidMappings", linux.uid_mappings())?,
        list("linux.gidMappings", linux.gid_mappings())?,
    ))
}

fn mappings(path: &str, asked: &[LinuxIdMapping]) -> Result<Vec<IdMapping>, Error> {
    text::at_most(path, asked.len(), IdMapping::MAX_COUNT)?;
    let mut resolved: Vec<IdMapping> = Vec::new();
    for (i, entry) in asked.iter().enumerate() {
        let refuse = |problem: &str| Error::property(format!("{path}[{i}]"), problem);
        let mapping = IdMapping {
            inside: entry.container_id(),
            outside: entry.host_id(),
            count: entry.size(),
        };
        if mapping.count == 0 {
            return Err(refuse("size must be more than 0"));
        }
        // The last id means none.
        let fits = |first: u32| first.checked_add(mapping.count).is_some();
        if !fits(mapping.inside) || !fits(mapping.outside) {
            return Err(refuse("goes beyond the last id"));
        }
        let meets = |a: u32, a_count: u32, b: u32| (a..a + a_count).contains(&b);
        let overlaps = |other: &IdMapping| {
            meets(other.inside, other.count, mapping.inside)
                || meets(mapping.inside, mapping.count, other.inside)
                || meets(other.outside, other.count, mapping.outside)
                || meets(mapping.outside, mapping.count, other.outside)
        };
        if resolved.iter().any(overlaps) {
            return Err(refuse("overlaps with another one"));
        }
        resolved.push(mapping);
    }
    let has_root = resolved.iter().any(|mapping| mapping.inside == 0);
    if !asked.is_empty() && !has_root {
        let problem = "must map id 0: the container is set up by it";
        return Err(Error::property(path, problem));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(mappings: Value, namespaces: u64) -> Result<Vec<IdMapping>, String> {
        let linux = json!({"uidMappings": mappings, "gidMappings": mappings});
        let linux: Linux = serde_json::from_value(linux).unwrap();
        let (uids, gids) = resolve(&linux, namespaces).map_err(|e| e.to_string())?;
        assert_eq!(uids, gids);
        Ok(uids)
    }

    fn one(inside: u32, outside: u32, count: u32) -> Value {
        json!({"containerID": inside, "hostID": outside, "size": count})
    }

    #[test]
    fn ranges() {
        let mappings = json!([one(0, 1000, 1), one(1, 100_000, 65_536)]);
        assert_eq!(
            resolved(mappings, namespace::USER),
            Ok(vec![
                IdMapping {
                    inside: 0,
                    outside: 1000,
                    count: 1
                },
                IdMapping {
                    inside: 1,
                    outside: 100_000,
                    count: 65_536
                }
            ])
        );
        assert!(resolved(json!([one(0, 0, u32::MAX)]), namespace::USER).is_ok());
        assert_eq!(resolved(json!([]), 0), Ok(vec![]));
    }

    #[test]
    fn refusals() {
        let many: Vec<_> = (0..341).map(|i| one(i, i, 1)).collect();
        for (mappings, namespaces, message) in [
            (
                json!([one(0, 0, 1)]),
                0,
                "linux.uidMappings: needs an entry of type user in linux.namespaces",
            ),
            (
                json!([]),
                namespace::USER,
                "linux.uidMappings: must not be empty with a user namespace",
            ),
            (
                json!([one(0, 0, 0)]),
                namespace::USER,
                "linux.uidMappings[0]: size must be more than 0",
            ),
            (
                json!([one(0, u32::MAX, 1)]),
                namespace::USER,
                "linux.uidMappings[0]: goes beyond the last id",
            ),
            (
                json!([one(0, 10, 5), one(4, 100, 1)]),
                namespace::USER,
                "linux.uidMappings[1]: overlaps with another one",
            ),
            (
                json!([one(0, 10, 5), one(9, 8, 3)]),
                namespace::USER,
                "linux.uidMappings[1]: overlaps with another one",
            ),
            (
                json!([one(1, 10, 5)]),
                namespace::USER,
                "linux.uidMappings: must map id 0: the container is set up by it",
            ),
            (
                json!(many),
                namespace::USER,
                "linux.uidMappings: has 341 entries, more than 340",
            ),
        ] {
            assert_eq!(resolved(mappings, namespaces), Err(message.to_owned()));
        }
    }
}
