//! `linux.devices` and `linux.resources.devices` (config-linux.md, "Devices" and
//! "Allowed Device list"). Nodes and rules are the guest's: no device of the host
//! is reachable by its number.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use vmrun_protocol::plan::{DeviceKind, DeviceNode, DeviceRule, access};

use crate::{Error, text};

const MAX_NODES: usize = 1024;
const MAX_RULES: usize = 1024;

/// Linux packs a device number into 12 bits of major and 20 of minor.
const MAX_MAJOR: i64 = (1 << 12) - 1;
const MAX_MINOR: i64 = (1 << 20) - 1;

const ALL: u8 = access::MKNOD | access::READ | access::WRITE;

/// Allowed to every container, behind its own rules, as runc does: making nodes,
/// null, zero, full, random, urandom, tty, ptmx and pseudo-terminals.
const ALWAYS_ALLOWED: [(DeviceKind, Option<u32>, Option<u32>, u8); 10] = [
    (DeviceKind::Char, None, None, access::MKNOD),
    (DeviceKind::Block, None, None, access::MKNOD),
    (DeviceKind::Char, Some(1), Some(3), ALL),
    (DeviceKind::Char, Some(1), Some(5), ALL),
    (DeviceKind::Char, Some(1), Some(7), ALL),
    (DeviceKind::Char, Some(1), Some(8), ALL),
    (DeviceKind::Char, Some(1), Some(9), ALL),
    (DeviceKind::Char, Some(5), Some(0), ALL),
    (DeviceKind::Char, Some(5), Some(2), ALL),
    (DeviceKind::Char, Some(136), None, ALL),
];

/// Character devices that the guest's kernel has, with their minor numbers (`None`
/// is every one). Block devices there are none of a container's concern.
const GUEST_DEVICES: [(u32, Option<u32>); 10] = [
    (1, Some(3)),    // null
    (1, Some(5)),    // zero
    (1, Some(7)),    // full
    (1, Some(8)),    // random
    (1, Some(9)),    // urandom
    (1, Some(11)),   // kmsg
    (5, Some(0)),    // tty
    (5, Some(2)),    // ptmx
    (10, Some(229)), // fuse
    (136, None),     // pts
];

/// The nodes of `linux.devices`. A device of the host is refused: in the guest its
/// number would be nothing, or something else.
pub fn nodes(devices: &[LinuxDevice]) -> Result<Vec<DeviceNode>, Error> {
    text::at_most("linux.devices", devices.len(), MAX_NODES)?;
    let node = |(i, device)| node(&format!("linux.devices[{i}]"), device);
    devices.iter().enumerate().map(node).collect()
}

fn node(path: &str, device: &LinuxDevice) -> Result<DeviceNode, Error> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => {
            let problem = "\"a\" is not the type of a node";
            return Err(Error::property(format!("{path}.type"), problem));
        }
    };
    let is_fifo = kind == DeviceKind::Fifo;
    let number = |name, value, max| {
        if is_fifo {
            Ok(0)
        } else {
            number(format!("{path}.{name}"), value, max)
        }
    };
    let (major, minor) = (
        number("major", device.major(), MAX_MAJOR)?,
        number("minor", device.minor(), MAX_MINOR)?,
    );
    let in_container = text::container_path(&format!("{path}.path"), device.path())?;
    let is_guests =
        |&(of, every): &(u32, Option<u32>)| of == major && every.is_none_or(|n| n == minor);
    if !is_fifo && (kind != DeviceKind::Char || !GUEST_DEVICES.iter().any(is_guests)) {
        let problem = format!(
            "{:?} ({} {major}:{minor}) is a device of the host, and not in the machine, which has \
             null, zero, full, random, urandom, kmsg, tty, ptmx, pts and fuse",
            device.path(),
            device.typ().as_str(),
        );
        return Err(Error::property(path, problem));
    }
    Ok(DeviceNode {
        path: in_container,
        kind,
        major,
        minor,
        // Callers pass the host's st_mode, with the file type in it.
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn number(path: String, value: i64, max: i64) -> Result<u32, Error> {
    if (0..=max).contains(&value) {
        Ok(value as u32)
    } else {
        Err(Error::property(path, format!("must be 0 to {max}")))
    }
}

/// Deny everything, then the rules of `linux.resources.devices`, then what is
/// always allowed: the last rule that matches decides.
pub fn rules(listed: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, Error> {
    let path = "linux.resources.devices";
    text::at_most(path, listed.len(), MAX_RULES)?;
    let deny_all = DeviceRule {
        allow: false,
        kind: None,
        major: None,
        minor: None,
        access: ALL,
    };
    let mut rules = vec![deny_all];
    for (i, entry) in listed.iter().enumerate() {
        rules.push(rule(&format!("{path}[{i}]"), entry)?);
    }
    rules.extend(
        ALWAYS_ALLOWED.map(|(kind, major, minor, access)| DeviceRule {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }),
    );
    Ok(rules)
}

fn rule(path: &str, entry: &LinuxDeviceCgroup) -> Result<DeviceRule, Error> {
    let kind = match entry.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(DeviceKind::Block),
        LinuxDeviceType::C => Some(DeviceKind::Char),
        other => {
            let problem = format!("{:?} is not the type of a rule", other.as_str());
            return Err(Error::property(format!("{path}.type"), problem));
        }
    };
    // runc takes -1 for "every", as its own callers write it.
    let every_or = |name, value: Option<i64>, max| match value {
        None | Some(-1) => Ok(None),
        Some(n) => number(format!("{path}.{name}"), n, max).map(Some),
    };
    Ok(DeviceRule {
        allow: entry.allow(),
        kind,
        major: every_or("major", entry.major(), MAX_MAJOR)?,
        minor: every_or("minor", entry.minor(), MAX_MINOR)?,
        access: access_bits(path, entry.access().as_deref().unwrap_or_default())?,
    })
}

fn access_bits(path: &str, letters: &str) -> Result<u8, Error> {
    let refuse = || Error::property(format!("{path}.access"), "must be letters of \"rwm\"");
    if letters.is_empty() {
        return Err(refuse());
    }
    letters.bytes().try_fold(0, |bits, letter| {
        Ok(bits
            | match letter {
                b'r' => access::READ,
                b'w' => access::WRITE,
                b'm' => access::MKNOD,
                _ => return Err(refuse()),
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node_of(json: &str) -> Result<DeviceNode, String> {
        let devices: Vec<LinuxDevice> = serde_json::from_str(&format!("[{json}]")).unwrap();
        nodes(&devices)
            .map(|mut n| n.remove(0))
            .map_err(|e| e.to_string())
    }

    fn rules_of(json: &str) -> Result<Vec<DeviceRule>, String> {
        let listed: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        rules(&listed).map_err(|e| e.to_string())
    }

    #[test]
    fn node_with_all_properties() {
        let json = r#"{"path":"/dev/fuse","type":"c","major":10,"minor":229,
                       "fileMode":8630,"uid":1,"gid":2}"#;
        assert_eq!(
            node_of(json),
            Ok(DeviceNode {
                path: b"/dev/fuse".to_vec(),
                kind: DeviceKind::Char,
                major: 10,
                minor: 229,
                mode: 0o666,
                uid: 1,
                gid: 2,
            })
        );
    }

    #[test]
    fn a_fifo_has_no_number() {
        let node = node_of(r#"{"path":"/dev/f","type":"p","major":-1,"minor":-1}"#).unwrap();
        assert_eq!((node.major, node.minor, node.mode), (0, 0, 0o666));
    }

    #[test]
    fn bad_nodes() {
        for (json, message) in [
            (
                r#"{"path":"/dev/x","type":"a"}"#,
                "linux.devices[0].type: \"a\" is not the type of a node",
            ),
            (
                r#"{"path":"dev/x","type":"c","major":1,"minor":3}"#,
                "linux.devices[0].path: must be an absolute path",
            ),
            (
                r#"{"path":"/dev/sda","type":"b","major":8,"minor":0}"#,
                "linux.devices[0]: \"/dev/sda\" (b 8:0) is a device of the host, and not in the \
                 machine, which has null, zero, full, random, urandom, kmsg, tty, ptmx, pts and fuse",
            ),
            (
                r#"{"path":"/dev/net/tun","type":"u","major":10,"minor":200}"#,
                "linux.devices[0]: \"/dev/net/tun\" (u 10:200) is a device of the host, and not in \
                 the machine, which has null, zero, full, random, urandom, kmsg, tty, ptmx, pts and \
                 fuse",
            ),
            (
                r#"{"path":"/dev/x","type":"c","major":4096}"#,
                "linux.devices[0].major: must be 0 to 4095",
            ),
            (
                r#"{"path":"/dev/x","type":"c","minor":-1}"#,
                "linux.devices[0].minor: must be 0 to 1048575",
            ),
        ] {
            assert_eq!(node_of(json), Err(message.to_owned()));
        }
    }

    #[test]
    fn rules_lie_between_deny_all_and_the_always_allowed() {
        let rules = rules_of(
            r#"[{"allow":false,"access":"rwm"},
                {"allow":true,"type":"c","major":10,"minor":-1,"access":"rw"}]"#,
        )
        .unwrap();
        assert_eq!(rules[0], rules[1]);
        assert_eq!(
            rules[2],
            DeviceRule {
                allow: true,
                kind: Some(DeviceKind::Char),
                major: Some(10),
                minor: None,
                access: access::READ | access::WRITE,
            }
        );
        assert_eq!(rules.len(), 3 + ALWAYS_ALLOWED.len());
        assert!(rules[3..].iter().all(|r| r.allow));
    }

    #[test]
    fn bad_rules() {
        for (json, message) in [
            (
                r#"[{"allow":true}]"#,
                "linux.resources.devices[0].access: must be letters of \"rwm\"",
            ),
            (
                r#"[{"allow":true,"access":"rx"}]"#,
                "linux.resources.devices[0].access: must be letters of \"rwm\"",
            ),
            (
                r#"[{"allow":true,"type":"p","access":"r"}]"#,
                "linux.resources.devices[0].type: \"p\" is not the type of a rule",
            ),
            (
                r#"[{"allow":true,"type":"c","major":-2,"access":"r"}]"#,
                "linux.resources.devices[0].major: must be 0 to 4095",
            ),
        ] {
            assert_eq!(rules_of(json), Err(message.to_owned()));
        }
    }
}
